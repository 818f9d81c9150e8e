"""``millrace batches`` over a gateway without a network."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_gateway import FakeGateway, error, page
from typer.testing import CliRunner, Result

from millrace_client import text
from millrace_client.cli import app
from millrace_client.connection import Connection
from millrace_client.errors import ApiError, BadRequest, MillraceError, NoGateway
from millrace_client.home import Home

ENVIRON = {"MILLRACE_BASE_URL": "http://gateway", "OPENAI_API_KEY": "sk-mr-secret"}
PATH = "/v1/batches"
ONE = f"{PATH}/batch-1"
CHAT = "/v1/chat/completions"
ANSWERS = b'{"custom_id": "a"}\n'
MISTAKES = b'{"custom_id": "b"}\n'


def batch(status: str, completed: int = 0, failed: int = 0, **more: object) -> dict[str, object]:
    return {
        "id": "batch-1",
        "object": "batch",
        "endpoint": CHAT,
        "model": "demo",
        "status": status,
        "errors": None,
        "input_file_id": "file-1",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": 1_700_000_000,
        "in_progress_at": None,
        "request_counts": {"total": 8, "completed": completed, "failed": failed},
        **more,
    }


DONE = batch("completed", 7, 1, output_file_id="file-out", error_file_id="file-err")


@pytest.fixture
def gateway() -> FakeGateway:
    found = FakeGateway()
    found.answer("GET /v1/files/file-out/content", httpx.Response(200, content=ANSWERS))
    found.answer("GET /v1/files/file-err/content", httpx.Response(200, content=MISTAKES))
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(gateway: FakeGateway, *arguments: str) -> Result:
    connection = Connection(ENVIRON, Home(Path("unused")), gateway.transport)
    runner = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"})
    return runner.invoke(app, ("batches", *arguments), obj=connection)


def test_a_path_is_uploaded_and_an_id_taken_as_it_is(gateway: FakeGateway, here: Path) -> None:
    (here / "in.jsonl").write_text('{"custom_id": "a"}\n')
    gateway.answer("POST /v1/files", {"id": "file-9"})
    gateway.answer(f"POST {PATH}", batch("validating"))
    assert run(gateway, "create", "in.jsonl", "--endpoint", CHAT).exit_code == 0
    assert b"batch" in gateway.requests[0].content and b"custom_id" in gateway.requests[0].content
    assert gateway.body() == {
        "input_file_id": "file-9",
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    arguments = ("--metadata", "team=a=b", "--metadata", "empty=", "--request-id", "r")
    given = ("create", "file-3", "-e", "/v1/embeddings", "--completion-window", "24h", *arguments)
    assert run(gateway, *given).exit_code == 0
    assert gateway.body() == {
        "input_file_id": "file-3",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"team": "a=b", "empty": ""},
    }
    assert gateway.requests[-1].headers["idempotency-key"] == "r"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.jsonl", "-e", CHAT), "neither a file here nor the id of an upload"),
        (("file-1", "-e", CHAT, "--metadata", "team"), "'team' is not KEY=VALUE"),
        (("file-1", "-e", "/v1/images"), "/v1/embeddings"),
        (("file-1",), "--endpoint"),
    ],
)
def test_what_makes_no_batch_is_said_before_anything_is_sent(
    gateway: FakeGateway, here: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = run(gateway, "create", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert gateway.requests == []


def test_the_gateways_refusal_is_its_own(gateway: FakeGateway) -> None:
    gateway.answer(f"POST {PATH}", error(400, "only 24h", param="completion_window"))
    result = run(gateway, "create", "file-1", "-e", CHAT, "--completion-window", "1h")
    assert isinstance(result.exception, BadRequest)
    assert result.exception.param == "completion_window"


def test_a_batch_is_made_and_watched(gateway: FakeGateway) -> None:
    gateway.answer(f"POST {PATH}", batch("validating"))
    gateway.answer(f"GET {ONE}", batch("in_progress", 4), DONE)
    result = run(gateway, "create", "file-1", "-e", CHAT, "--watch")
    assert result.exit_code == 0
    assert "lines 4/8 (50%)" in result.output
    assert "output_file_id" in result.output, "it is shown as it ended"


def test_the_list_says_how_far_each_is(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {PATH}", page(batch("in_progress", 4, 2)))
    output = run(gateway, "list").output
    for expected in ("batch-1", CHAT, "demo", "in_progress", "lines 6/8 (75%)", "2"):
        assert expected in output


def test_one_is_shown_and_cancelled(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}", DONE)
    gateway.answer(f"POST {ONE}/cancel", batch("cancelling"))
    assert "request_counts.completed" in run(gateway, "show", "batch-1").output
    assert json.loads(run(gateway, "show", "batch-1", "--json").stdout) == DONE
    assert "cancelling" in run(gateway, "cancel", "batch-1").output
    gateway.answer(f"POST {ONE}/cancel", error(409, "Cannot cancel"))
    assert isinstance(run(gateway, "cancel", "batch-1").exception, ApiError)


def test_a_watched_batch_shows_its_progress_and_ends(gateway: FakeGateway) -> None:
    began = int(time.time()) - 1000
    gateway.answer(
        f"GET {ONE}",
        batch("validating", request_counts={"total": 0, "completed": 0, "failed": 0}),
        batch("in_progress", 3, 1, in_progress_at=began),
        error(503, "restarting"),
        DONE,
    )
    result = run(gateway, "watch", "batch-1")
    assert result.exit_code == 0
    assert f"in_progress  {text.bar(1, 2)}  lines 4/8 (50%)  1 failed  about 1" in result.output
    assert re.search(r"about 1[67] min \d\d s left", result.output), "as long again"
    assert "7 answered, 1 not; see: millrace batches results batch-1" in result.output
    assert "batch-1 completed" in result.output


def test_watching_a_batch_with_a_wrong_input_exits_with_1(gateway: FakeGateway) -> None:
    wrong = [
        {"code": "invalid_json_line", "message": "no [JSON]", "line": 3, "param": None},
        {"code": "model_not_found", "message": "no model", "line": None, "param": "model"},
    ]
    gateway.answer(f"GET {ONE}", batch("failed", errors={"object": "list", "data": wrong}))
    result = run(gateway, "watch", "batch-1")
    assert result.exit_code == 1
    assert "line 3: invalid_json_line: no [JSON]" in result.output
    assert "\nmodel_not_found: no model" in result.output


def test_a_batch_that_ran_out_of_time_is_no_success(gateway: FakeGateway) -> None:
    gateway.answer(f"GET {ONE}", batch("expired", 7, output_file_id="file-out"))
    result = run(gateway, "watch", "batch-1")
    assert result.exit_code == 1
    assert "7 answered, 1 not" in result.output


def test_results_are_answers_and_mistakes(gateway: FakeGateway, here: Path) -> None:
    gateway.answer(f"GET {ONE}", DONE)
    result = run(gateway, "results", "batch-1", "--output", "answers.jsonl")
    assert result.exit_code == 0
    assert result.output.splitlines() == ["answers.jsonl  19 B", "answers.errors.jsonl  19 B"]
    assert (here / "answers.jsonl").read_bytes() == ANSWERS
    assert (here / "answers.errors.jsonl").read_bytes() == MISTAKES
    saved = json.loads(run(gateway, "results", "batch-1", "--json").stdout)
    assert [one["path"] for one in saved] == ["batch-1_output.jsonl", "batch-1_errors.jsonl"]
    assert (here / "batch-1_errors.jsonl").read_bytes() == MISTAKES


def test_where_nothing_was_answered_there_are_mistakes_alone(
    gateway: FakeGateway, here: Path
) -> None:
    gateway.answer(f"GET {ONE}", batch("completed", 0, 8, error_file_id="file-err"))
    assert run(gateway, "results", "batch-1", "-o", "answers.jsonl").exit_code == 0
    assert [path.name for path in here.iterdir()] == ["answers.errors.jsonl"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("in_progress", "its results come when it has ended; see: millrace batches watch batch-1"),
        ("failed", "has no results; see: millrace batches show batch-1"),
    ],
)
def test_a_batch_without_results_says_why(
    gateway: FakeGateway, here: Path, status: str, said: str
) -> None:
    gateway.answer(f"GET {ONE}", batch(status))
    result = run(gateway, "results", "batch-1")
    assert isinstance(result.exception, MillraceError)
    assert said in str(result.exception)
    assert list(here.iterdir()) == []


def test_a_folder_that_is_not_there_is_said_so(gateway: FakeGateway, here: Path) -> None:
    result = run(gateway, "results", "batch-1", "-o", "nowhere/answers.jsonl")
    assert result.exit_code == 2
    assert "there is no folder nowhere" in result.output
    assert gateway.requests == []


def test_a_download_that_breaks_off_leaves_what_was_there(gateway: FakeGateway, here: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield ANSWERS[:5]
        raise httpx.ReadError("the connection was reset")

    answers = here / "answers.jsonl"
    answers.write_bytes(b"of before")
    gateway.answer(f"GET {ONE}", DONE)
    gateway.answer(
        "GET /v1/files/file-out/content", lambda _: httpx.Response(200, content=broken())
    )
    result = run(gateway, "results", "batch-1", "-o", "answers.jsonl")
    assert isinstance(result.exception, NoGateway)
    assert answers.read_bytes() == b"of before"
    assert list(here.iterdir()) == [answers]
