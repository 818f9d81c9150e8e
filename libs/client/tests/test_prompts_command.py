"""``millrace prompts``, and ``--prompt`` of ``millrace tune create``."""

import json
from pathlib import Path

import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
TEMPLATE = {"messages": [{"role": "user", "content": "[b]{{question}}[/b]"}]}
PROMPT: dict[str, object] = {
    "id": "pmpt-1",
    "object": "prompt",
    "created_at": 1,
    "updated_at": 2,
    "name": "support",
    "latest_version": "2",
}
VERSION: dict[str, object] = {"id": "2", "prompt_id": "pmpt-1", "digest": "sha256:ab", **TEMPLATE}
RENDERING: dict[str, object] = {
    "version": "2",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "[b]Where?[/b]"},
    ],
}


@pytest.fixture
def gateway() -> FakeGateway:
    gateway = FakeGateway().answer("POST /v1/prompts", PROMPT)
    gateway.answer("GET /v1/prompts", page(PROMPT))
    gateway.answer("POST /v1/prompts/pmpt-1/versions", VERSION)
    gateway.answer("GET /v1/prompts/pmpt-1/versions/latest", VERSION)
    gateway.answer("GET /v1/prompts/pmpt-1/versions/1", {**VERSION, "id": "1"})
    gateway.answer("DELETE /v1/prompts/pmpt-1", {"id": "pmpt-1", "deleted": True})
    return gateway.answer("POST /v1/prompts/pmpt-1/render", RENDERING)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "support.json"
    path.write_text(json.dumps(TEMPLATE))
    return str(path)


def run(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, arguments, obj=connection)


def test_create_and_update(gateway: FakeGateway, file: str) -> None:
    made = run(gateway, "prompts", "create", file, "--json")
    assert json.loads(made.output) == PROMPT
    assert gateway.body() == {**TEMPLATE, "name": "support"}
    run(gateway, "prompts", "create", file, "--name", "other", "--request-id", "r1")
    assert gateway.body()["name"] == "other"
    assert gateway.requests[-1].headers["idempotency-key"] == "r1"
    added = run(gateway, "prompts", "update", "pmpt-1", file, "--json")
    assert json.loads(added.output) == VERSION
    assert gateway.body() == TEMPLATE


def test_list_show_delete(gateway: FakeGateway) -> None:
    assert "support" in run(gateway, "prompts", "list").output
    assert json.loads(run(gateway, "prompts", "show", "pmpt-1", "--json").output)["id"] == "2"
    assert json.loads(run(gateway, "prompts", "show", "pmpt-1@1", "--json").output)["id"] == "1"
    assert run(gateway, "prompts", "delete", "pmpt-1").exit_code == 0


def test_render(gateway: FakeGateway) -> None:
    shown = run(gateway, "prompts", "render", "pmpt-1@2", "--set", "question=a=b")
    assert shown.output == "system\nBe brief.\nuser\n[b]Where?[/b]\n"
    assert gateway.body() == {"version": "2", "variables": {"question": "a=b"}}
    whole = run(gateway, "prompts", "render", "pmpt-1", "--json")
    assert json.loads(whole.output) == RENDERING
    wrong = run(gateway, "prompts", "render", "pmpt-1", "--set", "question")
    assert wrong.exit_code == 2


def test_a_job_names_its_prompt(gateway: FakeGateway) -> None:
    job: dict[str, object] = {"id": "ftjob-1", "status": "queued"}
    gateway.answer("POST /v1/fine_tuning/jobs", job)
    base = ("tune", "create", "-M", "demo", "-f", "file-1")
    run(gateway, *base, "--prompt", "pmpt-1@2", "--completion", "reply", "--json")
    assert gateway.body()["prompt"] == {"id": "pmpt-1", "version": "2", "completion": "reply"}
    run(gateway, *base, "--prompt", "pmpt-1", "--json")
    assert gateway.body()["prompt"] == {"id": "pmpt-1"}
    run(gateway, *base, "--json")
    assert "prompt" not in gateway.body()
    assert run(gateway, *base, "--completion", "reply").exit_code == 2


def test_a_refusal_is_said(gateway: FakeGateway, file: str) -> None:
    refused = error(400, "messages: must be", "invalid_prompt", "messages")
    gateway.answer("POST /v1/prompts", refused)
    assert "messages: must be" in str(run(gateway, "prompts", "create", file).exception)
