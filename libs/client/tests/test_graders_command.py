"""``millrace graders`` over a gateway without a network."""

import json
from pathlib import Path

import pytest
from fake_gateway import FakeGateway
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/fine_tuning/alpha/graders"
GRADER = {"type": "string_check", "name": "exact"}
GRADE: dict[str, object] = {
    "reward": 0.0,
    "sub_rewards": {},
    "model_grader_token_usage_per_model": {},
    "metadata": {
        "errors": {"other_error": False, "invalid_variable_error": True},
        "execution_time": 0.1,
        "name": "exact",
        "scores": {"exact": 0.0},
        "type": "string_check",
    },
}


@pytest.fixture
def gateway() -> FakeGateway:
    gateway = FakeGateway()
    gateway.answer(f"POST {PATH}/validate", {"grader": GRADER})
    return gateway.answer(f"POST {PATH}/run", GRADE)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(GRADER))
    return str(path)


def run(gateway: FakeGateway, *arguments: str, stdin: str = "") -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("graders", *arguments), obj=connection, input=stdin)


def test_a_grader_is_validated(gateway: FakeGateway, file: str) -> None:
    assert "a string_check grader, and right" in run(gateway, "validate", file).output
    assert gateway.body() == {"grader": GRADER}
    assert run(gateway, "validate", "-", stdin=json.dumps(GRADER)).exit_code == 0
    assert json.loads(run(gateway, "validate", file, "--json").stdout) == {"grader": GRADER}


def test_an_answer_is_graded_and_what_went_wrong_is_shown(gateway: FakeGateway, file: str) -> None:
    output = run(gateway, "run", file, "--sample", "42", "--item", '{"answer": 42}').output
    assert "reward" in output and "invalid_variable_error" in output
    assert "other_error" not in output
    assert gateway.body() == {"grader": GRADER, "model_sample": "42", "item": {"answer": 42}}


def test_the_item_may_lie_in_a_file(gateway: FakeGateway, file: str, tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text('{"answer": 42}')
    output = run(gateway, "run", file, "-s", "42", "-i", str(tmp_path / "item.json"), "--json")
    assert json.loads(output.stdout) == GRADE
    assert gateway.body()["item"] == {"answer": 42}


@pytest.mark.parametrize("arguments", [("nowhere.json",), ("-",)])
def test_what_is_no_json_is_said(gateway: FakeGateway, arguments: tuple[str, ...]) -> None:
    result = run(gateway, "validate", *arguments, stdin="{")
    assert result.exit_code == 2 and not gateway.requests
