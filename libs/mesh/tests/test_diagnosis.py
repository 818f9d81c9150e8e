import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from millrace_mesh import diagnosis
from millrace_runtime import bus
from millrace_runtime.dead_letters import Letter
from millrace_testkit.servers import NatsServer

READY = {"name": "data", "phase": "ready", "address": "127.0.0.1:1", "restarts": 0, "last_end": ""}


def stream(name: str, messages: int, *consumers: dict[str, object]) -> dict[str, object]:
    return {"name": name, "state": {"messages": messages}, "consumer_detail": list(consumers)}


def jsz(*streams: dict[str, object]) -> dict[str, object]:
    return {"account_details": [{"stream_detail": list(streams)}]}


def test_a_mesh_that_does_not_run_is_one_finding(tmp_path):
    from millrace_client.home import Home

    (finding,) = diagnosis.examine(None, Home(tmp_path))
    assert (finding.is_good, finding.remedy) == (False, "millrace up --detach")


def test_a_process_that_is_ready_is_good():
    assert diagnosis.process_finding(READY).is_good


def test_a_process_that_ends_again_and_again_is_not():
    finding = diagnosis.process_finding({**READY, "restarts": 5, "last_end": "ended with status 1"})
    assert not finding.is_good
    assert "ended with status 1" in finding.detail
    assert finding.remedy == "millrace logs data"


def test_a_process_that_waits_for_its_next_start_is_not():
    waiting = {**READY, "phase": "waiting", "restarts": 1, "last_end": "was ended by SIGKILL"}
    assert "SIGKILL" in diagnosis.process_finding(waiting).detail


def test_a_stream_that_is_not_there_is_said_so():
    (finding,) = diagnosis.stream_findings(jsz())
    assert not finding.is_good


def test_consumers_that_keep_up_are_not_mentioned():
    durable = {"durable_name": "registry"}
    idle = {"name": "registry", "num_pending": 0, "num_ack_pending": 0, "config": durable}
    late = {"name": "tuner", "num_pending": 150, "num_ack_pending": 1, "config": durable}
    findings = diagnosis.stream_findings(jsz(stream("MILLRACE", 9, idle, late)))
    assert [(f.subject, f.is_good) for f in findings] == [("stream", True), ("consumer", False)]
    assert findings[1].detail == "151 facts wait for tuner"


def test_replays_that_nobody_takes_are_told():
    waiting = {
        "name": "tuner",
        "num_pending": 2,
        "num_ack_pending": 0,
        "config": {"durable_name": "tuner"},
    }
    found = diagnosis.stream_findings(
        jsz(stream("MILLRACE", 9), stream("MILLRACE_REPLAYS", 2, waiting))
    )
    assert found[1].detail == "2 replayed facts wait for tuner"


def letter(**changes: object) -> Letter:
    made = Letter(
        id="letter-1",
        subject="millrace.acme.data.dataset.ready",
        consumer="trainer",
        reason="no such dataset",
        error="PoisonFact",
        deliveries=1,
        time=datetime(2030, 1, 1, tzinfo=UTC),
        payload=b"{}",
    )
    return replace(made, **changes)


def test_dead_letters_are_told_with_the_newest_reason():
    found = diagnosis.letters_finding([letter(), letter(reason="older")], more=True)
    assert not found.is_good
    assert found.detail == (
        "2 and more refused; the last by trainer: data.dataset.ready: PoisonFact: no such dataset"
    )
    assert "millrace dead-letters list (--tenant acme)" in found.remedy


def test_no_dead_letters_is_good():
    assert diagnosis.letters_finding([]).is_good


SETTINGS = {
    "MILLRACE": {"subjects": ["millrace.>"], "retention": "limits"},
    "MILLRACE_DEAD_LETTERS": {
        "subjects": ["dead.millrace.>"],
        "retention": "limits",
        "max_msgs_per_subject": 1,
    },
    "MILLRACE_REPLAYS": {
        "subjects": ["replay.>"],
        "retention": "workqueue",
        "max_msgs_per_subject": 1,
    },
}


def configured(**changes: object) -> dict[str, object]:
    """``/jsz`` with streams as the services make them, but for changes to the facts' one."""
    usual = {
        "storage": "file",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "duplicate_window": 120_000_000_000,
    }
    streams = [{**stream(name, 1), "config": {**usual, **SETTINGS[name]}} for name in SETTINGS]
    streams[0]["config"] |= changes
    return jsz(*streams)


def test_streams_as_the_services_make_them_are_good():
    (finding,) = diagnosis.config_findings(configured())
    assert finding.is_good, finding.detail


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("storage", "memory"),
        ("max_age", 3_600_000_000_000),
        ("max_msgs", 1000),
        ("max_bytes", 1_000_000),
        ("retention", "interest"),
        ("subjects", ["millrace.acme.>"]),
        ("duplicate_window", 1_000_000_000),
        ("max_msgs_per_subject", 1),
    ],
)
def test_a_stream_that_could_lose_facts_is_not(setting: str, value: object):
    (finding,) = diagnosis.config_findings(configured(**{setting: value}))
    assert not finding.is_good
    assert finding.detail.startswith(f"MILLRACE: {setting} is {value!r}, not ")
    assert finding.remedy


def test_streams_of_a_real_server_are_good(nats_server: NatsServer):
    """What the services make passes the check, in the server's own words."""

    async def settings() -> list[dict[str, object]]:
        client = await bus.connect_patiently(nats_server.url, "test")
        await bus.ensure_streams(client.jetstream())
        answer = await client.request("$JS.API.STREAM.LIST", timeout=5)
        await client.close()
        return json.loads(answer.data)["streams"]

    found = asyncio.run(settings())
    streams = [{"name": each["config"]["name"], "config": each["config"]} for each in found]
    (finding,) = diagnosis.config_findings(jsz(*streams))
    assert finding.is_good, finding.detail


def test_models_that_answer_and_that_do_not():
    good, no_route, silent = diagnosis.model_findings(
        ["demo", "ft"], {"demo", "lost"}, {"demo": "", "ft": "503 no engine"}
    )
    assert (good.is_good, good.detail) == (True, "answering: demo")
    assert no_route.detail == "lost has a serving version and no route"
    assert silent.detail == "ft does not answer: 503 no engine"
    assert not no_route.is_good and not silent.is_good and silent.remedy


def test_no_model_at_all_is_no_fault():
    assert [f.is_good for f in diagnosis.model_findings([], set(), {})] == [True]


def test_work_that_nobody_took_over_is_told():
    finding = diagnosis.work_finding("tuner", {"millrace_work_expired_leases": 2.0})
    assert not finding.is_good
    assert "2 leases" in finding.detail
    assert "millrace logs tuner" in finding.remedy


def test_a_database_that_could_lose_commits_is_told():
    samples = {"millrace_database_durable": 0.0, "millrace_work_expired_leases": 0.0}
    assert not diagnosis.work_finding("tuner", samples).is_good
    assert diagnosis.work_finding("tuner", {**samples, "millrace_database_durable": 1.0}).is_good


def test_facts_that_have_only_just_come_are_no_backlog():
    fresh = {
        "millrace_outbox_unpublished_facts": 3.0,
        "millrace_outbox_oldest_fact_seconds": 0.5,
    }
    assert diagnosis.outbox_finding("data", fresh).is_good
    late = {**fresh, "millrace_outbox_oldest_fact_seconds": 75.0}
    finding = diagnosis.outbox_finding("data", late)
    assert not finding.is_good
    assert finding.detail == "3 facts wait to be published, the oldest for 1 min 15 s"


METRICS = """
# TYPE millrace_nats_connected gauge
millrace_nats_connected 1.0
# TYPE millrace_outbox_pending_facts gauge
millrace_outbox_pending_facts 3.0
# TYPE millrace_rpc_server_calls_total counter
millrace_rpc_server_calls_total{code="OK"} 9.0
"""


def test_a_backlog_is_read_from_the_metrics():
    finding = diagnosis.outbox_finding("data", diagnosis.metrics(METRICS))
    assert (finding.is_good, finding.detail) == (False, "3 facts wait to be published")


def test_an_empty_outbox_is_good():
    samples = diagnosis.metrics(METRICS.replace("facts 3.0", "facts 0.0"))
    assert diagnosis.outbox_finding("data", samples).is_good


def test_being_cut_off_from_nats_is_told_first():
    samples = diagnosis.metrics(METRICS.replace("connected 1.0", "connected 0.0"))
    assert diagnosis.outbox_finding("data", samples).detail.startswith("cut off from NATS")
