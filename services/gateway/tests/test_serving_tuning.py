"""Searches for settings over REST, with the registry's searches as they are."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from gateway_mesh import Mesh

from millrace.registry.v1 import service_pb2 as pb
from millrace_registry.domain import Deployment, RequestKey
from millrace_registry.strategies import Immediate
from millrace_registry.tuning.api import TuningServicer
from millrace_runtime.database import open_database
from millrace_testkit.clock import FakeClock
from millrace_testkit.servers import wait_until

sys.path.append(str(Path(__file__).resolve().parents[2] / "registry" / "tests"))
from registry_builders import World
from tuning_builders import BEST, Parts, PlayedJob

ID = "deployment-1"


@pytest.fixture
def client(mesh: Mesh) -> httpx.Client:
    return mesh.http()


@pytest.fixture
def parts(mesh: Mesh, tmp_path: Path, clock: FakeClock) -> Iterator[Parts]:
    """The registry's searches, for a deployment of a model that serves and nobody has asked."""
    database = open_database(f"sqlite:///{tmp_path}/registry.db")
    world = World(database, tmp_path / "of-registry", clock)
    now = clock()
    made = Deployment("default", ID, "quiet", now, now, strategy=Immediate())
    world.catalogue.add_deployment(made, RequestKey("", ""))
    world.finish(1, "quiet", tenant="default")
    world.look(5)
    known = mesh.registry.deployments
    known.add(pb.Deployment(name=f"tenants/default/deployments/{ID}", model="quiet"))
    found = Parts(world, tmp_path, PlayedJob())
    mesh.registry.serving_tunings.real = TuningServicer(found.app, threading.Event())
    mesh.registry.serving_tunings.is_away = False
    yield found
    database.close()


def create(
    client: httpx.Client, body: dict[str, Any] | None = None, **headers: str
) -> httpx.Response:
    path = f"/v1/deployments/{ID}/serving_tunings"
    return client.post(path, json=body or {}, headers=headers)


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    told = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if lines and lines["data"] != "[DONE]":
            told.append((lines["event"], json.loads(lines["data"])))
    return told


def test_a_search_is_made_carried_out_and_reported(client: httpx.Client, parts: Parts) -> None:
    made = create(client, {"trials": 2, "max_threads": 2}).json()
    assert (made["status"], made["deployment"], made["model"]) == ("queued", ID, "quiet")
    assert made["traffic"] == {"source": "default", "requests": 0, "requests_per_second": 0.0}
    assert (made["search"]["max_threads"], made["search"]["max_batch_size"]) == (2, None)
    assert parts.work()
    path = f"/v1/serving_tunings/{made['id']}"
    found = client.get(path).json()
    assert (found["status"], found["version"]) == ("succeeded", 1)
    assert [trial["kind"] for trial in found["trials"]][::4] == ["present", "confirmation"]
    assert found["result"]["is_written"]
    serving = found["result"]["deployment"]["serving"]
    assert serving["max_batch_size"] == BEST.max_batch_size
    report = client.get(f"{path}/report").json()
    assert "Written to deployment-1." in report["conclusion"]
    assert {figure["scenario"] for figure in report["figures"]} == {
        "single_stream",
        "offline",
        "server",
    }
    compared = report["comparison"]
    assert (compared["present"], compared["best"], compared["best_trial"]) == ([5, 5], [9, 9], 2)
    assert compared["gain_low"] < compared["gain"] < compared["gain_high"]
    plot = client.get(f"{path}/report.svg")
    assert plot.headers["content-type"].startswith("image/svg+xml")
    assert ElementTree.fromstring(plot.content).tag.endswith("svg")


def test_one_of_a_deployment_at_a_time_and_a_request_sent_twice_is_one(
    client: httpx.Client, parts: Parts
) -> None:
    first = create(client, **{"idempotency-key": "k"}).json()
    assert create(client, **{"idempotency-key": "k"}).json()["id"] == first["id"]
    refused = create(client)
    assert refused.status_code == 409
    assert first["id"] in refused.json()["error"]["message"]
    cancelled = client.post(f"/v1/serving_tunings/{first['id']}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "cancelled")
    assert create(client).status_code == 200


def test_searches_are_listed_newest_first_page_by_page(client: httpx.Client, parts: Parts) -> None:
    made = []
    for _ in range(3):
        made.append(create(client).json()["id"])
        client.post(f"/v1/serving_tunings/{made[-1]}/cancel")
    page = client.get("/v1/serving_tunings", params={"limit": 2}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (made[:0:-1], True)
    rest = client.get(
        f"/v1/deployments/{ID}/serving_tunings", params={"limit": 2, "after": page["last_id"]}
    ).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (made[:1], False)
    none = client.get("/v1/serving_tunings", params={"deployment": "deployment-other"}).json()
    assert none["data"] == []


def test_a_search_is_told_as_it_goes_over_a_restart_of_the_registry(
    mesh: Mesh, client: httpx.Client, parts: Parts
) -> None:
    fake = mesh.registry.serving_tunings

    def works() -> None:
        fake.is_away = True
        wait_until(lambda: bool(parts.store.page("default", "", "", 1)), 30, "a search")
        assert parts.work()
        fake.is_away = False

    worker = threading.Thread(target=works)
    body = {"traffic": [{"prompt_tokens": 7, "answer_tokens": 5}], "trials": 2}
    with client.stream("POST", f"/v1/deployments/{ID}/tune_serving", json=body) as response:
        assert response.status_code == 200
        worker.start()
        response.read()
    worker.join()
    told = events(response)
    assert [kind for kind, _ in told if kind != "phase"] == [
        "serving_tuning",
        "traffic",
        *["trial"] * 5,
        "result",
    ]
    assert told[1][1]["source"] == "given"
    assert parts.job.orders[0].traffic == [(7, 5)]
    assert told[-1][1]["deployment"]["model"] == "quiet"
    assert response.text.endswith("data: [DONE]\n\n")
    again = client.get(
        f"/v1/serving_tunings/{told[0][1]['id']}/events", headers={"last-event-id": "3"}
    )
    assert [each["number"] for kind, each in events(again) if kind == "trial"] == [4]


def test_who_leaves_the_stream_leaves_the_search_running(
    client: httpx.Client, parts: Parts
) -> None:
    with client.stream("POST", f"/v1/deployments/{ID}/tune_serving", json={}) as response:
        next(response.iter_lines())
    assert parts.work()
    (found,) = client.get("/v1/serving_tunings").json()["data"]
    assert found["status"] == "succeeded"


def test_one_that_is_cancelled_ends_its_stream_with_an_error(
    client: httpx.Client, parts: Parts
) -> None:
    made = create(client).json()
    client.post(f"/v1/serving_tunings/{made['id']}/cancel")
    told = events(client.get(f"/v1/serving_tunings/{made['id']}/events"))
    assert told[-1][0] == "error"
    assert "cancelled" in told[-1][1]["error"]["message"]


def test_what_is_not_there_is_not_found(client: httpx.Client, parts: Parts) -> None:
    for path in ("", "/events", "/report", "/report.svg"):
        assert client.get(f"/v1/serving_tunings/tuning-none{path}").status_code == 404
    assert client.post("/v1/serving_tunings/tuning-none/cancel").status_code == 404
    other = client.post("/v1/deployments/deployment-none/serving_tunings", json={})
    assert other.status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"trials": 0}, "trials"),
        ({"latency_target_seconds": 0}, "latency_target_seconds"),
        ({"traffic": []}, "traffic"),
        ({"max_queue_delay_seconds": 1}, "max_queue_delay_seconds"),
    ],
)
@pytest.mark.parametrize("path", ["tune_serving", "serving_tunings"])
def test_a_bad_search_names_the_field(
    client: httpx.Client, parts: Parts, body: dict[str, Any], param: str, path: str
) -> None:
    response = client.post(f"/v1/deployments/{ID}/{path}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
