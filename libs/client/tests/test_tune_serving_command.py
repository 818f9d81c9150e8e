"""``millrace tune-serving``: the search as it is shown, kept and drawn."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_gateway import FakeGateway, error, page, stream
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home
from millrace_client.serving_plot import plot

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
ROUTE = "POST /v1/deployments/deployment-1/tune_serving"
UNSAID = {"instance_count": None, "max_batch_size": None, "threads": None, "cache_gibibytes": None}


def trial(number: int, kind: str, rate: float | None, **serving: int) -> dict[str, Any]:
    return {
        "number": number,
        "kind": kind,
        "status": "measured" if rate else "pruned",
        "reason": None if rate else "it cannot win",
        "serving": {**UNSAID, "queue_policy": {}, **serving},
        "load_seconds": 1.0,
        "single_stream_seconds_p90": 0.25,
        "single_stream_first_token_seconds_p90": 0.05,
        "offline_tokens_per_second": 320.0,
        "offline_requests_per_second": 10.0,
        "server_requests_per_second": rate,
        "server_tokens_per_second": rate and rate * 32,
        "server_first_token_seconds_p99": rate and 0.4,
        "server_token_seconds_p99": rate and 0.01,
    }


TRIALS = [
    trial(0, "present", 5.0),
    trial(1, "candidate", None, max_batch_size=8),
    trial(2, "candidate", 8.0, max_batch_size=32, threads=2),
]
RESULT = {
    "winner": 2,
    "is_better": True,
    "is_written": True,
    "reason": "60% more requests within the target",
    "noise": 0.05,
    "queue_policy": {"max_queue_size": 8, "default_timeout_seconds": 1.0},
    "deployment": {"id": "deployment-1"},
}


def event(kind: str, document: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(document)}"


def search(result: dict[str, Any]) -> Any:
    told = [event("traffic", {"source": "recent", "requests": 40, "requests_per_second": 2.5})]
    for one in TRIALS:
        told += [event("phase", {"phase": "loading"}), event("trial", one)]
    return stream(*told, event("result", result), "data: [DONE]")


@pytest.fixture
def gateway() -> FakeGateway:
    deployments = [
        {"id": "deployment-2", "model": "other"},
        {"id": "deployment-1", "model": "demo"},
    ]
    return FakeGateway().answer("GET /v1/deployments", page(*deployments))


def run(gateway: FakeGateway, tmp_path: Path, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(tmp_path), gateway.transport)
    return CliRunner().invoke(app, ["tune-serving", *arguments], obj=connection)


def test_the_winner_is_shown_kept_and_drawn(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(ROUTE, search(RESULT))
    drawn, kept = tmp_path / "trials.svg", tmp_path / "trials.json"
    files = ("--plot", str(drawn), "--output", str(kept))
    found = run(gateway, tmp_path, "demo", "--latency-target-seconds", "0.5", *files)
    assert found.exit_code == 0, found.output
    assert gateway.body()["latency_target_seconds"] == 0.5
    assert "max_threads" not in gateway.body()
    assert "best: trial 2" in found.stdout
    assert "written to deployment-1" in found.stdout
    assert "shaped like the last 40 requests (2.5/s)" in found.stderr
    document = json.loads(kept.read_text())
    assert [one["number"] for one in document["trials"]] == [0, 1, 2]
    assert document["result"] == RESULT
    svg = ElementTree.fromstring(drawn.read_text())
    assert len(svg.findall("{http://www.w3.org/2000/svg}circle")) == 2


def test_what_is_no_better_changes_nothing(gateway: FakeGateway, tmp_path: Path) -> None:
    result = {**RESULT, "winner": 0, "is_better": False, "is_written": False, "reason": "a tie"}
    gateway.answer(ROUTE, search(result))
    assert "nothing changed: a tie" in run(gateway, tmp_path, "demo").stdout


def test_a_search_that_breaks_off_is_an_error(gateway: FakeGateway, tmp_path: Path) -> None:
    document = {"error": {"message": "the registry restarts; try again"}}
    gateway.answer(ROUTE, stream(event("phase", {"phase": "loading"}), event("error", document)))
    assert "the registry restarts" in str(run(gateway, tmp_path, "demo").exception)
    gateway.answer(ROUTE, stream(event("phase", {"phase": "loading"})))
    assert "broke off" in str(run(gateway, tmp_path, "demo").exception)
    gateway.answer(ROUTE, error(429, "another search is under way"))
    assert "under way" in str(run(gateway, tmp_path, "demo").exception)


def test_given_traffic_is_whole(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(ROUTE, search(RESULT))
    assert run(gateway, tmp_path, "demo", "--prompt-tokens", "64").exit_code == 2
    assert run(gateway, tmp_path, "nobody").exception is not None
    run(gateway, tmp_path, "demo", "--prompt-tokens", "64", "--answer-tokens", "8")
    assert gateway.body()["traffic"] == [{"prompt_tokens": 64, "answer_tokens": 8}]


def test_a_plot_of_nothing_is_still_one() -> None:
    svg = ElementTree.fromstring(plot("a <model>", [TRIALS[1]], 0, 0.5))
    assert "a <model>" in "".join(svg.itertext())
