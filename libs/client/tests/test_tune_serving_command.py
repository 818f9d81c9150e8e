"""``millrace tune-serving``: the search as it is shown, kept and drawn."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
ROUTE = "POST /v1/deployments/deployment-1/serving_tunings"
SEARCH = "/v1/serving_tunings/tuning-1"
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


def tuning(status: str, looks: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": "tuning-1",
        "object": "serving_tuning",
        "created_at": 0,
        "deployment": "deployment-1",
        "model": "demo",
        "status": status,
        "progress": {"phase": "loading", "completed": looks, "total": 6, "metrics": {}},
        "error": None,
        "traffic": {"source": "recent", "requests": 40, "requests_per_second": 2.5},
        "trials": TRIALS[:looks],
        "result": None,
        **changes,
    }


DONE = tuning("succeeded", 3, result=RESULT)
CANCELLED = tuning("cancelled", 1, error={"code": "cancelled", "message": "cancelled by its user"})
FIGURE = {
    "scenario": "server",
    "name": "server_requests_per_second",
    "unit": "requests_per_second",
    "present": 5.0,
    "best": 8.0,
}


def report(search: dict[str, Any], conclusion: str) -> dict[str, Any]:
    return {
        "object": "serving_tuning.report",
        "serving_tuning": search,
        "conclusion": conclusion,
        "figures": [FIGURE],
        "comparison": {"present": [5.0], "best": [8.0]},
    }


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    monkeypatch.setattr("millrace_client.serving_watch._POLL_SECONDS", 0.0)
    deployments = [
        {"id": "deployment-2", "model": "other"},
        {"id": "deployment-1", "model": "demo"},
    ]
    made = FakeGateway().answer("GET /v1/deployments", page(*deployments))
    made.answer(ROUTE, tuning("queued"))
    made.answer(f"GET {SEARCH}", tuning("running", 1), error(503, "restarts"), DONE)
    made.answer(f"GET {SEARCH}/report", report(DONE, "Trial 2 answers 8 requests/s. Written."))
    return made.answer(f"GET {SEARCH}/report.svg", httpx.Response(200, text="<svg/>"))


def run(gateway: FakeGateway, tmp_path: Path, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(tmp_path), gateway.transport)
    return CliRunner().invoke(app, ["tune-serving", *arguments], obj=connection)


def test_a_search_is_watched_to_its_end_kept_and_drawn(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    drawn, kept = tmp_path / "trials.svg", tmp_path / "trials.json"
    files = ("--plot", str(drawn), "--output", str(kept))
    found = run(gateway, tmp_path, "demo", "--latency-target-seconds", "0.5", *files)
    assert found.exit_code == 0, found.output
    asked = json.loads(gateway.requests[1].content)
    assert asked["latency_target_seconds"] == 0.5
    assert "max_threads" not in asked
    for words in ("Trial 2 answers 8 requests/s", "+60.0%", "--max-queue-size 8"):
        assert words in found.stdout
    assert "shaped like the last 40 requests (2.5/s)" in found.stderr
    assert [f"trial {number}" in found.stderr for number in range(3)] == [True] * 3
    document = json.loads(kept.read_text())
    assert [one["number"] for one in document["trials"]] == [0, 1, 2]
    assert document["result"] == RESULT
    assert drawn.read_text() == "<svg/>"


def test_a_search_that_is_left_goes_on_and_it_is_said_how_to_follow_it(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    def ctrl_c(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    gateway.answer(f"GET {SEARCH}", ctrl_c)
    found = run(gateway, tmp_path, "demo")
    assert found.exit_code == 130
    assert "tuning-1 goes on" in found.stderr
    assert "millrace tune-serving watch tuning-1" in found.stderr
    assert "millrace tune-serving cancel tuning-1" in found.stderr
    assert not any(request.url.path.endswith("cancel") for request in gateway.requests)


def test_one_that_is_detached_is_not_waited_for(gateway: FakeGateway, tmp_path: Path) -> None:
    found = run(gateway, tmp_path, "demo", "--detach")
    assert "tuning-1 queued" in found.stdout
    assert "millrace tune-serving watch tuning-1" in found.stdout
    assert len(gateway.requests) == 2
    assert run(gateway, tmp_path, "demo", "--detach", "--plot", "x.svg").exit_code == 2


def test_one_that_did_not_succeed_says_why(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"GET {SEARCH}", CANCELLED)
    found = run(gateway, tmp_path, "watch", "tuning-1")
    assert found.exit_code == 1
    assert "cancelled by its user" in found.stderr
    gateway.answer(ROUTE, error(409, "another search is under way"))
    assert "under way" in str(run(gateway, tmp_path, "demo").exception)


def test_searches_are_listed_with_what_came_of_them(gateway: FakeGateway, tmp_path: Path) -> None:
    tie = tuning("succeeded", 3, result={**RESULT, "is_better": False, "is_written": False})
    gateway.answer("GET /v1/serving_tunings", page(tuning("running", 1), DONE, tie, CANCELLED))
    found = run(gateway, tmp_path, "list", "--model", "demo")
    assert gateway.requests[-1].url.params["deployment"] == "deployment-1"
    for words in ("1/6", "trial 2, written", "no winner: the present", "cancelled by its user"):
        assert words in found.stdout


def test_one_is_cancelled_shown_and_reported(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.answer(f"POST {SEARCH}/cancel", CANCELLED)
    assert "tuning-1 cancelled" in run(gateway, tmp_path, "cancel", "tuning-1").stdout
    gateway.answer(f"GET {SEARCH}", DONE)
    assert "deployment-1" in run(gateway, tmp_path, "show", "tuning-1").stdout
    shown = json.loads(run(gateway, tmp_path, "report", "tuning-1", "--json").stdout)
    assert shown["conclusion"].startswith("Trial 2")
    assert shown["id"] == "tuning-1"


def test_given_traffic_is_whole(gateway: FakeGateway, tmp_path: Path) -> None:
    assert run(gateway, tmp_path, "demo", "--prompt-tokens", "64").exit_code == 2
    assert run(gateway, tmp_path, "nobody").exception is not None
    run(gateway, tmp_path, "--prompt-tokens", "64", "--answer-tokens", "8", "demo", "--detach")
    assert gateway.body()["traffic"] == [{"prompt_tokens": 64, "answer_tokens": 8}]


def test_the_help_names_the_ways_of_asking(gateway: FakeGateway, tmp_path: Path) -> None:
    for arguments in ((), ("--help",)):
        shown = run(gateway, tmp_path, *arguments).output
        for word in ("start", "list", "watch", "report", "cancel"):
            assert word in shown
