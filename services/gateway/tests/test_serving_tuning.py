"""``/v1/deployments/{id}/tune_serving``: a search passed on, and for which traffic."""

import json
from typing import Any

import grpc
import httpx
import pytest
from gateway_mesh import Mesh

from millrace.registry.v1 import service_pb2 as pb


@pytest.fixture
def client(mesh: Mesh) -> httpx.Client:
    return mesh.http()


class PlayedSearch:
    """What the registry says of a search, and what it was asked."""

    def __init__(self, *news: pb.TuneServingResponse, code: grpc.StatusCode | None = None) -> None:
        self.news, self.code = news, code
        self.asked: list[pb.TuneServingRequest] = []

    async def tune(self, request: pb.TuneServingRequest, context: Any) -> Any:
        self.asked.append(request)
        for one in self.news:
            yield one
        if self.code is not None:
            await context.abort(self.code, "settings are being searched for already")


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    told = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines["data"] != "[DONE]":
            told.append((lines["event"], json.loads(lines["data"])))
    return told


def tuned(mesh: Mesh, client: httpx.Client, search: PlayedSearch, body: object) -> httpx.Response:
    # Of no other test: what they ask of a model is its traffic.
    made = client.post("/v1/deployments", json={"model": "quiet"}).json()
    mesh.registry.tune_serving = search.tune
    return client.post(f"/v1/deployments/{made['id']}/tune_serving", json=body)


def test_a_search_is_told_as_it_goes(mesh: Mesh, client: httpx.Client) -> None:
    trial = pb.ServingTrial(
        kind=pb.ServingTrial.KIND_PRESENT,
        state=pb.ServingTrial.STATE_MEASURED,
        serving=pb.Serving(threads=2),
        offline_tokens_per_second=10,
    )
    result = pb.ServingResult(reason="a tie", deployment=pb.Deployment(model="demo"))
    search = PlayedSearch(
        pb.TuneServingResponse(phase="loading"),
        pb.TuneServingResponse(trial=trial),
        pb.TuneServingResponse(result=result),
    )
    told = events(tuned(mesh, client, search, {"trials": 3, "max_threads": 2}))
    assert [kind for kind, _ in told] == ["traffic", "phase", "trial", "result"]
    shown = told[2][1]
    assert (shown["kind"], shown["status"], shown["serving"]["threads"]) == (
        "present",
        "measured",
        2,
    )
    assert (shown["offline_tokens_per_second"], shown["server_requests_per_second"]) == (10, None)
    assert (told[3][1]["reason"], told[3][1]["deployment"]["model"]) == ("a tie", "demo")
    asked = search.asked[0]
    assert (asked.trials, asked.max_threads, asked.max_batch_size) == (3, 2, 0)
    assert told[0][1]["source"] == "default"


def test_given_traffic_is_passed_on(mesh: Mesh, client: httpx.Client) -> None:
    search = PlayedSearch(pb.TuneServingResponse(phase="loading"))
    body = {"traffic": [{"prompt_tokens": 7, "answer_tokens": 5}]}
    assert events(tuned(mesh, client, search, body))[0][1]["source"] == "given"
    assert list(search.asked[0].traffic.prompt_tokens) == [7]


def test_a_search_that_is_refused_has_a_status(mesh: Mesh, client: httpx.Client) -> None:
    search = PlayedSearch(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert tuned(mesh, client, search, {}).status_code == 429


def test_one_that_breaks_off_ends_with_an_error(mesh: Mesh, client: httpx.Client) -> None:
    search = PlayedSearch(
        pb.TuneServingResponse(phase="loading"), code=grpc.StatusCode.FAILED_PRECONDITION
    )
    told = events(tuned(mesh, client, search, {}))
    assert [kind for kind, _ in told] == ["traffic", "phase", "error"]
    assert told[-1][1]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"trials": 0}, "trials"),
        ({"latency_target_seconds": 0}, "latency_target_seconds"),
        ({"traffic": []}, "traffic"),
        ({"max_queue_delay_seconds": 1}, "max_queue_delay_seconds"),
    ],
)
def test_a_bad_search_names_the_field(
    mesh: Mesh, client: httpx.Client, body: dict[str, Any], param: str
) -> None:
    response = tuned(mesh, client, PlayedSearch(), body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
