"""The demo's parts, over a gateway without a network."""

import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from rich.console import Console

from millrace_client.api import Millrace
from millrace_client.endpoint import Endpoint
from millrace_client.home import Home
from millrace_mesh import state
from millrace_mesh.demo import canary, dataset, run, serving, session
from millrace_mesh.demo.canary import Split
from millrace_mesh.demo.plan import FULL, QUICK
from millrace_mesh.demo.screen import DemoFailed, Screen
from millrace_mesh.demo.session import Session
from millrace_mesh.demo.traffic import Traffic
from millrace_mesh.layout import Layout

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def make_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], Session]:
    monkeypatch.setattr(session, "_POLL_SECONDS", 0.0)

    def make(handler: Handler) -> Session:
        screen = Screen()
        screen.console = Console(file=io.StringIO(), width=200)
        api = Millrace(Endpoint("http://gateway", "key"), transport=httpx.MockTransport(handler))
        client = openai.OpenAI(base_url="http://gateway/v1", api_key="key")
        return Session(Layout(Home(tmp_path)), QUICK, screen, api, client)

    return make


def said(made: Session) -> str:
    file = made.screen.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def unavailable(message: str) -> httpx.Response:
    return httpx.Response(503, json={"error": {"message": message, "code": "x", "param": None}})


def page(*items: object) -> httpx.Response:
    return httpx.Response(200, json={"data": items, "has_more": False})


def test_what_was_made_is_found_again_by_its_request_id(make_session):
    made: dict[str, str] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        request_id = request.headers["idempotency-key"]
        made.setdefault(request_id, f"dataset-{len(made)}")
        return httpx.Response(200, json={"id": made[request_id], "status": "running"})

    first, second = make_session(handler), make_session(handler)
    assert dataset.ensure(first)["id"] == dataset.ensure(second)["id"] == "dataset-0"
    other = replace(second, plan=replace(QUICK, model="another"))
    assert dataset.ensure(other)["id"] == "dataset-1"


def test_what_failed_before_is_made_anew(make_session):
    ids: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        ids.append(request.headers["idempotency-key"])
        status = "failed" if len(ids) == 1 else "queued"
        return httpx.Response(200, json={"id": f"run-{len(ids)}", "status": status})

    made = make_session(handler)
    assert run.ensure(made, {"id": "dataset-1"})["id"] == "run-2"
    assert [request_id[-2:] for request_id in ids] == ["-1", "-2"]


def test_a_service_that_is_restarted_is_waited_for(make_session):
    answers = [unavailable("trainer is away"), httpx.Response(200, json={"status": "queued"})]
    made = make_session(lambda _: answers.pop(0))
    assert made.patiently(lambda: made.api.runs.get("run-1")) == {"status": "queued"}


def test_what_fails_says_why_and_where_to_look(make_session):
    failed = {
        "id": "dataset-1",
        "status": "failed",
        "progress": None,
        "error": {"code": "too_small", "message": "only 3 documents are left"},
    }
    made = make_session(lambda _: httpx.Response(200, json=failed))
    with pytest.raises(DemoFailed, match=r"too_small: only 3 .* \(millrace logs data\)"):
        dataset.wait(made, failed)


def test_what_never_comes_fails_in_time(make_session):
    made = make_session(lambda _: page())
    with pytest.raises(DemoFailed, match=r"the moon: not within 0 s.*millrace doctor"):
        made.until(lambda: None, "the moon", 0)


def test_the_version_with_most_requests_is_the_one_served(make_session):
    model = {
        "id": "demo",
        "versions": [{"version": 2, "share": 0.25}, {"version": 1, "share": 0.75}],
    }
    made = make_session(lambda _: page(model))
    assert serving.version(made, "demo") == 1
    assert serving.version(made, "other") == 0


def test_a_rejected_checkpoint_ends_the_demo_with_the_gates_reason(make_session):
    rejected = {
        "id": "compression-1",
        "checkpoint": "runs/r/checkpoints/c",
        "status": "succeeded",
        "verdict": {"passed": False, "reasons": ["perplexity 20.0 → 31.0 (+55 %)"]},
    }
    made = make_session(lambda _: page(rejected))
    with pytest.raises(DemoFailed, match=r"perplexity 20\.0 → 31\.0"):
        serving.wait_for_checkpoint(made, "runs/r/checkpoints/c", "demo")


def test_a_reversed_rollout_ends_the_demo_with_its_reason(make_session):
    version = {
        "id": "demo@2",
        "model": "demo",
        "version": 2,
        "checkpoint": "runs/r/checkpoints/c",
        "status": "registered",
    }
    rollout = {"to_version": 2, "status": "reversed", "reason": "3 of 8 requests failed"}
    answers = {
        "/v1/compressions": page(),
        "/v1/versions": page(version),
        "/v1/rollouts": page(rollout),
    }
    made = make_session(lambda request: answers[request.url.path])
    with pytest.raises(DemoFailed, match="3 of 8 requests failed"):
        serving.wait_for_checkpoint(made, "runs/r/checkpoints/c", "demo")


def test_a_failed_request_fails_the_demo_unless_its_way_was_restarted(make_session):
    made = make_session(lambda _: page())
    home = made.layout.home
    home.lock_file.parent.mkdir(exist_ok=True)
    with state.hold_lock(home.lock_file):
        pid = int(home.lock_file.read_text())
        document = {"pid": pid, "processes": [{"name": "triton", "restarts": 0}]}
        home.state_file.write_text(json.dumps(document))
        traffic = Traffic(made)
        traffic.answered = Counter({"demo@1": 9})
        traffic.require_no_failure()
        traffic.errors.append("InternalServerError: the engine broke off")
        with pytest.raises(DemoFailed, match=r"1 of 10 requests failed.*the engine broke off"):
            traffic.require_no_failure()
        document["processes"][0]["restarts"] = 1
        home.state_file.write_text(json.dumps(document))
        traffic.require_no_failure()


def test_a_split_counts_what_came_during_the_canary():
    split = Split(2, 0.25, before={1: 100}, answered_before={1: 80})
    split.after, split.answered_after = {1: 130, 2: 10}, {1: 104, 2: 8}
    assert (split.counts, split.answered) == ({1: 30, 2: 10}, {1: 24, 2: 8})
    assert "answered by version 1: 24 (75%), version 2: 8 (25%)" in str(split)


def test_tritons_statistics_are_counted_by_version():
    class Triton:
        def get_inference_statistics(self, *_: object, **__: object) -> dict[str, object]:
            success = {"success": {"count": "7", "ns": "1"}}
            return {
                "model_stats": [
                    {"name": "default.demo", "version": "1", "inference_stats": success},
                    {"name": "default.demo", "version": "2", "inference_stats": {}},
                ]
            }

    assert canary.inference_counts(Triton(), "default.demo", {}) == {1: 7, 2: 0}


def test_plans_of_other_sizes_have_other_names():
    assert len({FULL.digest, QUICK.digest, replace(FULL, epochs=9).digest}) == 3
    assert FULL.digest == replace(FULL).digest


def test_in_a_pipe_the_live_line_is_said_now_and_then(make_session):
    made = make_session(lambda _: page())
    with made.screen.stage("Training"):
        for step in range(100):
            made.screen.live(f"step {step} [of 100]")
    lines = said(made).splitlines()
    assert [line for line in lines if "step" in line] == ["00:00  step 0 [of 100]"]
    assert lines[-1].startswith("00:00  Training: done in ")
