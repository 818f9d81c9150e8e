"""Webhooks through the whole gateway: the unmodified ``openai`` package on both ends, a real
nats-server between."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from gateway_mesh import Mesh
from openai.types.webhooks import BatchCompletedWebhookEvent, FineTuningJobSucceededWebhookEvent
from webhook_parts import SUCCEEDED, Receiver, receiving

from millrace.gateway.v1 import events_pb2 as gateway
from millrace.trainer.v1 import events_pb2 as trainer
from millrace_gateway.store import OUTBOX
from millrace_runtime.outbox import Outbox
from millrace_testkit.servers import NatsServer, wait_until

PATIENCE_SECONDS = 60.0
PATH = "/v1/webhook_endpoints"


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def live(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gateway whose webhooks reach this machine; retries follow at once."""
    mesh = Mesh(
        tmp_path_factory.mktemp("live"),
        nats_url=nats.url,
        webhook_allowed_networks=("127.0.0.0/8",),
        webhook_allow_http=True,
        webhook_retry_seconds=(0.05, 0.05, 3600),
    )
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture(autouse=True)
def no_endpoints(live: Mesh) -> Iterator[None]:
    yield
    for secret in (live.member_secret, live.other_secret):
        client = live.http(secret)
        for one in client.get(PATH).json()["data"]:
            assert client.delete(f"{PATH}/{one['id']}").json()["deleted"]
    live.reset()


def record(mesh: Mesh, message: Any, tenant: str = "default") -> str:
    """A fact of whichever service, through the gateway's own outbox."""
    outbox = Outbox(OUTBOX, lambda: datetime.now(UTC))
    with mesh.database.transaction() as connection:
        identifier = outbox.record(connection, tenant, message)
    mesh.relay.ring()
    return identifier


def endpoint(mesh: Mesh, receiver: Receiver, *types: str) -> Any:
    client = mesh.openai()
    made = client.webhooks.create(
        name="mine",
        url=receiver.url,
        event_types=list(types) or ["fine_tuning.job.succeeded"],  # type: ignore[arg-type]
    )
    receiver.secret = made.signing_secret
    return made


def deliveries(mesh: Mesh, made: Any, query: str = "") -> list[dict[str, Any]]:
    answer = mesh.http().get(f"{PATH}/{made.id}/deliveries?{query}")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, PATIENCE_SECONDS, what)


def test_a_fact_reaches_its_receiver(live: Mesh) -> None:
    """From the stream to ``unwrap``, over a receiver that fails once."""
    with receiving(statuses=[500]) as receiver:
        made = endpoint(live, receiver)
        identifier = record(live, SUCCEEDED)
        record(live, trainer.RunStarted(run="tenants/default/runs/run-1"))
        record(live, SUCCEEDED, tenant="acme")
        wait_for(lambda: len(receiver.events) == 2, "it is posted until it is taken")
        wait_for(lambda: bool(deliveries(live, made, "status=delivered")), "it is noted")
    assert not receiver.refused and len(set(receiver.ids)) == 1
    event = receiver.events[0]
    assert isinstance(event, FineTuningJobSucceededWebhookEvent)
    assert event.id == f"evt_{identifier.removeprefix('fact-')}"
    (delivery,) = deliveries(live, made)
    assert delivery["id"] == receiver.ids[0] and delivery["event_id"] == event.id
    assert [one["status_code"] for one in delivery["attempts"]] == [500, 200]
    whole = live.http().get(f"{PATH}/{made.id}/deliveries/{delivery['id']}").json()
    assert whole["event"]["data"] == {"id": "ftjob-1"}
    metrics = live.http().get("/metrics").text
    assert 'millrace_webhook_deliveries{status="delivered"} 1.0' in metrics
    assert 'millrace_webhook_attempts_total{outcome="retried"}' in metrics


def test_an_end_of_a_batch_and_events_of_our_own(live: Mesh) -> None:
    with receiving() as receiver:
        endpoint(live, receiver, "batch.*", "millrace.trainer.*")
        batch = "tenants/default/batches/batch-7"
        record(live, gateway.BatchCompleted(batch=batch, completed=2))
        record(live, trainer.RunSucceeded(run="tenants/default/runs/run-1"))
        wait_for(lambda: len(receiver.events) == 2, "both are posted")
    found = {one.type: one for one in receiver.events}
    completed = found["batch.completed"]
    assert isinstance(completed, BatchCompletedWebhookEvent) and completed.data.id == "batch-7"
    assert found["millrace.trainer.v1.RunSucceeded"].data.run.endswith("run-1")


def test_redelivery(live: Mesh) -> None:
    with receiving() as receiver:
        made = endpoint(live, receiver)
        record(live, SUCCEEDED)
        wait_for(lambda: bool(deliveries(live, made, "status=delivered")), "it is delivered")
        path = f"{PATH}/{made.id}/deliveries/{receiver.ids[0]}"
        again = live.http().post(f"{path}/redeliver")
        assert again.status_code == 200 and again.json()["id"] == receiver.ids[0]
        wait_for(lambda: len(receiver.ids) == 2, "it is posted again")
        wait_for(lambda: len(live.http().get(path).json()["attempts"]) == 2, "it is noted")
        assert len(set(receiver.ids)) == 1
        assert live.http(live.other_secret).post(f"{path}/redeliver").status_code == 404


def test_the_packages_own_methods(live: Mesh) -> None:
    client = live.openai()
    with receiving(statuses=[200, 418]) as receiver:
        made = endpoint(live, receiver, "batch.completed")
        assert made.signing_secret.startswith("whsec_") and made.signing_secret_hint
        assert "fine_tuning.job.cancelled" in client.webhooks.event_types.list().data
        found = client.webhooks.retrieve(made.id)
        assert (found.url, found.event_types) == (receiver.url, ["batch.completed"])
        assert [one.id for one in client.webhooks.list()] == [made.id]
        for status in (200, 418):
            told = client.webhooks.test(made.id, event_type="batch.completed")
            assert (told.status_code, told.success) == (status, True)
        changed = client.webhooks.update(made.id, name="other", event_types=["batch.failed"])
        assert (changed.name, changed.event_types) == ("other", ["batch.failed"])
        rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        assert rotated.signing_secret != made.signing_secret
        client.webhooks.test(made.id, event_type="batch.completed")
        receiver.secret = rotated.signing_secret
        client.webhooks.test(made.id, event_type="batch.completed")
        assert len(receiver.events) == 4 and not receiver.refused, "both secrets verify"
        again = client.webhooks.rotate_secret(made.id)
        client.webhooks.test(made.id, event_type="batch.completed")
        assert len(receiver.refused) == 1 and again.signing_secret != rotated.signing_secret
    with pytest.raises(openai.BadRequestError, match="did not answer"):
        client.webhooks.test(made.id, event_type="batch.completed")
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_another_tenant_sees_nothing(live: Mesh) -> None:
    with receiving() as receiver:
        made = endpoint(live, receiver)
        other = live.http(live.other_secret)
        one = f"{PATH}/{made.id}"
        assert other.get(PATH).json()["data"] == []
        asked = [
            other.get(one),
            other.post(one, json={"name": "x"}),
            other.delete(one),
            other.post(f"{one}/rotate_secret", json={}),
            other.post(f"{one}/test", json={"event_type": "batch.failed"}),
            other.get(f"{one}/deliveries"),
            other.get(f"{one}/deliveries/whd-1"),
        ]
        assert [answer.status_code for answer in asked] == [404] * len(asked)
        assert not receiver.events and not receiver.refused


def test_disabled_and_enabled(live: Mesh) -> None:
    with receiving() as receiver:
        made = endpoint(live, receiver)
        one = f"{PATH}/{made.id}"
        off = live.http().post(one, json={"enabled": False}).json()
        assert off["disabled_reason"] == "disabled by request" and off["disabled_at"]
        record(live, SUCCEEDED)
        assert live.http().post(one, json={"enabled": True}).json()["enabled"]
        record(live, SUCCEEDED)
        wait_for(lambda: len(receiver.events) == 1, "what came after is posted")
        assert len(deliveries(live, made)) == 1


BODY = {"name": "x", "url": "https://1.1.1.1/", "event_types": ["batch.failed"]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "https://[::1]/"}, "url"),
        ({"url": "https://u:p@1.1.1.1/"}, "url"),
        ({"url": "ftp://1.1.1.1/"}, "url"),
        ({"url": "https://no-such-host.invalid/"}, "url"),
        ({"url": 7}, "url"),
        ({"url": "x\x00"}, "url"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["batch.failed", "response.completed"]}, "event_types[1]"),
        ({"event_types": ["bat*"]}, "event_types[0]"),
        ({"event_types": [""]}, "event_types[0]"),
        ({"event_types": "batch.failed"}, "event_types"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"secret": "mine"}, "secret"),
        ({"enabled": "yes"}, "enabled"),
    ],
)
def test_mistakes(live: Mesh, change: dict[str, Any], param: str) -> None:
    answer = live.http().post(PATH, json={**BODY, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert live.http().get(PATH).json()["data"] == []


def test_mistakes_with_an_endpoint(live: Mesh) -> None:
    with receiving() as receiver:
        made = endpoint(live, receiver)
        one, client = f"{PATH}/{made.id}", live.http()
        assert client.post(one, json={}).status_code == 400
        refused = client.post(one, json={"url": "https://127.0.0.1.nip.invalid/"})
        assert refused.json()["error"]["code"] == "invalid_url"
        unknown = client.post(f"{one}/test", json={"event_type": "nothing.happened"})
        assert unknown.json()["error"]["param"] == "event_type"
        assert client.get(f"{one}/deliveries?status=lost").status_code == 400
        assert client.get(f"{one}/deliveries/whd-none").status_code == 404
        assert client.get(f"{one}/deliveries/%00").status_code == 404
        assert client.get(f"{PATH}/{'x' * 200}").status_code == 404


def test_the_same_request_makes_one_endpoint(live: Mesh) -> None:
    with receiving() as receiver:
        body = {**BODY, "url": receiver.url}
        client = live.http(**{"idempotency-key": "once"})
        first, second = client.post(PATH, json=body).json(), client.post(PATH, json=body).json()
        assert first == second and first["signing_secret"]
        assert client.post(PATH, json={**body, "name": "y"}).status_code == 409


def test_facts_that_come_while_nats_is_away(live: Mesh, nats: NatsServer) -> None:
    """The outbox keeps them; what the stream delivers twice is posted once."""
    with receiving() as receiver:
        made = endpoint(live, receiver)
        nats.kill()
        record(live, SUCCEEDED)
        nats.forget()
        nats.start()
        wait_for(lambda: bool(deliveries(live, made, "status=delivered")), "it is posted")
        record(live, SUCCEEDED)
        wait_for(lambda: len(deliveries(live, made, "status=delivered")) == 2, "it goes on")
        assert len(receiver.ids) == len(set(receiver.ids)) == 2
