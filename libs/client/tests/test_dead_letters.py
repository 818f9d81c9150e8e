"""``millrace dead-letters`` over a gateway without a network."""

import json
from pathlib import Path

import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.errors import NotFound
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/dead_letters"


def letter(identifier: str) -> dict[str, object]:
    return {
        "id": identifier,
        "object": "dead_letter",
        "tenant": "default",
        "status": "refused",
        "consumer": "trainer",
        "fact": "data.dataset.ready",
        "error": {"code": "PoisonFact", "message": "no [such] dataset", "param": None},
        "deliveries": 8,
        "created_at": 1_700_000_000,
        "event": {"id": "fact-1", "data": {"dataset": "x"}},
        "payload": None,
    }


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


def run(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("dead-letters", *arguments), obj=connection)


def test_the_list_says_who_refused_what_and_why(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {PATH}", page(letter("letter-1")))
    output = run(gateway, "list", "--tenant", "acme").output
    for expected in ("letter-1", "trainer", "data.dataset.ready", "PoisonFact: no [such] dataset"):
        assert expected in output
    assert gateway.requests[-1].url.params["tenant"] == "acme"


def test_one_is_shown_with_its_event(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {PATH}/letter-1", letter("letter-1"))
    assert "fact-1" in run(gateway, "show", "letter-1").output
    assert json.loads(run(gateway, "show", "letter-1", "--json").stdout) == letter("letter-1")


def test_one_is_replayed(gateway: FakeGateway) -> None:
    replaying = {**letter("letter-1"), "status": "replaying"}
    gateway.answer(f"POST {PATH}/letter-1/replay", replaying)
    assert "replaying" in run(gateway, "replay", "letter-1").output


def test_all_are_replayed_but_those_that_have_gone_meanwhile(gateway: FakeGateway) -> None:
    gateway.answer(
        f"GET {PATH}",
        page(letter("letter-1"), letter("letter-2"), has_more=True),
        page(letter("letter-3")),
    )
    gateway.answer(f"POST {PATH}/letter-1/replay", letter("letter-1"))
    gateway.answer(f"POST {PATH}/letter-2/replay", error(404, "No such dead letter"))
    gateway.answer(f"POST {PATH}/letter-3/replay", letter("letter-3"))
    result = run(gateway, "replay", "--all", "--json")
    assert [each["id"] for each in json.loads(result.stdout)] == ["letter-1", "letter-3"]


@pytest.mark.parametrize("arguments", [(), ("letter-1", "--all")])
def test_one_or_all_must_be_said(gateway: FakeGateway, arguments: tuple[str, ...]) -> None:
    result = run(gateway, "replay", *arguments)
    assert result.exit_code == 2
    assert gateway.requests == []


def test_one_is_given_up(gateway: FakeGateway) -> None:
    gone = {"id": "letter-1", "object": "dead_letter", "deleted": True}
    gateway.answer(f"DELETE {PATH}/letter-1", gone)
    assert json.loads(run(gateway, "delete", "letter-1", "--json").stdout) == gone


def test_one_that_there_is_not(gateway: FakeGateway) -> None:
    gateway.answer(f"POST {PATH}/letter-9/replay", error(404, "No such dead letter: 'letter-9'"))
    assert isinstance(run(gateway, "replay", "letter-9").exception, NotFound)


@pytest.mark.parametrize("command", ["list", "show", "replay", "delete"])
def test_help(gateway: FakeGateway, command: str) -> None:
    result = run(gateway, command, "--help")
    assert result.exit_code == 0
    assert "--tenant" in result.output
