"""``millrace rollouts``: a rollout followed, paused, resumed, and how it looks."""

import io
import json
from typing import Any

import pytest
from fake_gateway import FakeGateway, error, page
from rich.console import Console
from typer.testing import CliRunner, Result

from millrace_client import rollout_view
from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
SIDE = {"requests": 0, "failures": 0, "failure_rate": 0.0, "tokens": 0}
ROLLOUT: dict[str, Any] = {
    "id": "rollout-1",
    "object": "rollout",
    "model": "demo",
    "from_version": 1,
    "to_version": 2,
    "status": "shadow",
    "step": 0,
    "traffic_share": 0.0,
    "mirror_share": 0.5,
    "requests": 12,
    "failures": 1,
    "paused": False,
    "reason": "50% of the requests are mirrored [as it says]",
    "created_at": 1_700_000_000,
    "finished_at": None,
    "step_started_at": 1_700_000_010.0,
    "stage": {"strategy": "shadow", "seconds": 60, "minimum_requests": 20, "steps": 1},
    "old": {**SIDE, "requests": 24, "mean_first_token_seconds": None},
    "new": {
        "requests": 12,
        "failures": 1,
        "failure_rate": 1 / 12,
        "tokens": 120,
        "mean_first_token_seconds": 0.25,
    },
    "shadow": {
        "compared": 8,
        "agreement": 0.75,
        "truncated": 1,
        "failed": 1,
        "old_tokens": 80,
        "new_tokens": 90,
    },
}


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def millrace(gateway: FakeGateway, tmp_path: Any) -> Any:
    connection = Connection(ENVIRON, Home(tmp_path), gateway.transport)

    def run(*arguments: str) -> Result:
        runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
        return runner.invoke(app, arguments, obj=connection)

    return run


@pytest.mark.parametrize(("status", "code"), [("settled", 0), ("reversed", 1), ("superseded", 0)])
def test_watching_ends_as_the_rollout_does(
    millrace: Any, gateway: FakeGateway, status: str, code: int
) -> None:
    ended = {**ROLLOUT, "status": status, "reason": "so it ended"}
    gateway.answer("GET /v1/rollouts/rollout-1", ROLLOUT, error(503, "restarting"), ended)
    result = millrace("rollout", "watch", "rollout-1")
    assert result.exit_code == code
    assert "8 compared, 75.0% alike, 1 cut short, 1 failed" in result.output
    assert "mirrored 50%" in result.output
    assert "so it ended" in result.output


def test_the_rollout_of_a_model_that_is_under_way_is_found(
    millrace: Any, gateway: FakeGateway
) -> None:
    found = [{**ROLLOUT, "id": "rollout-9", "status": "pending"}, ROLLOUT]
    gateway.answer("GET /v1/rollouts", page(*found))
    gateway.answer("GET /v1/rollouts/rollout-1", {**ROLLOUT, "status": "settled"})
    assert millrace("rollouts", "watch", "--model", "demo").exit_code == 0


def test_a_model_without_rollouts_and_no_name_at_all_are_refused(
    millrace: Any, gateway: FakeGateway
) -> None:
    gateway.answer("GET /v1/rollouts", page())
    assert millrace("rollouts", "watch", "--model", "demo").exit_code == 1
    assert millrace("rollouts", "watch").exit_code == 2
    assert millrace("rollouts", "watch", "rollout-1", "--model", "demo").exit_code == 2


def test_programs_read_an_object_a_line(millrace: Any, gateway: FakeGateway) -> None:
    gateway.answer("GET /v1/rollouts/rollout-1", ROLLOUT, {**ROLLOUT, "status": "settled"})
    result = millrace("rollouts", "watch", "rollout-1", "--json")
    told = [json.loads(line) for line in result.output.splitlines()]
    assert [one["status"] for one in told] == ["shadow", "settled"]


@pytest.mark.parametrize("verb", ["pause", "resume", "promote"])
def test_a_rollout_is_acted_on(millrace: Any, gateway: FakeGateway, verb: str) -> None:
    gateway.answer(f"POST /v1/rollouts/rollout-1/{verb}", {**ROLLOUT, "paused": verb == "pause"})
    assert millrace("rollouts", verb, "rollout-1").exit_code == 0
    assert len(gateway.requests) == 1


def drawn(rollout: dict[str, Any], seconds: float = 1_700_000_040.0) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(rollout_view.picture(rollout, [0.3, 0.2, 0.25], seconds))
    return console.export_text()


def test_the_picture_shows_both_sides_the_step_and_why() -> None:
    text = drawn(ROLLOUT)
    assert "30.0 s of 1 min 00 s, 20 answers needed" in text
    assert "━" * 16 + "─" * 16 in text
    assert "0% to the new version, 50% mirrored to it" in text
    assert "12 requests, 1 failed (8.3%), first token after 250 ms, 120 tokens" in text
    assert "24 requests, 0 failed (0.0%)" in text
    assert "[as it says]" in text
    assert "paused" not in text
    assert "paused" in drawn({**ROLLOUT, "paused": True})


def test_the_picture_of_a_rollout_that_has_no_step_yet() -> None:
    early = {**ROLLOUT, "status": "pending", "stage": None, "step_started_at": None, "shadow": None}
    assert "answers needed" not in drawn(early)


def test_a_strategy_is_declared_by_name_or_in_full(millrace: Any, gateway: FakeGateway) -> None:
    gateway.answer("POST /v1/deployments", {"id": "deployment-1"})
    assert millrace("deployments", "create", "demo", "--strategy", "blue-green").exit_code == 0
    whole = '{"type": "shadow", "share": 0.2}'
    assert millrace("deployments", "create", "demo", "--strategy", whole).exit_code == 0
    bodies = [json.loads(request.content)["strategy"] for request in gateway.requests]
    assert bodies == [{"type": "blue_green"}, {"type": "shadow", "share": 0.2}]
    for wrong in (("--strategy", "{"), ("--strategy", "shadow", "--immediate")):
        assert millrace("deployments", "create", "demo", *wrong).exit_code == 2
