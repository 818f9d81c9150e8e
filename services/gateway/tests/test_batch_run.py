"""How lines are read, asked, put off and written down."""

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from batch_parts import (
    ENDPOINT,
    LIMITS,
    TURN_SECONDS,
    MemoryFiles,
    answered,
    jsonl,
    order,
    request,
    runner,
)

from millrace_gateway.batches import input as batch_input
from millrace_gateway.batches.ask import Answered, Desk
from millrace_gateway.batches.domain import Batch, Status
from millrace_gateway.batches.run import Turn
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.domain import Key, KeyLimits, Priority, Role
from millrace_gateway.store import METADATA, OUTBOX
from millrace_runtime.database import open_database
from millrace_runtime.errors import InvalidArgument, Unavailable
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[BatchStore]:
    database = open_database(f"sqlite:///{tmp_path}/gateway.db")
    METADATA.create_all(database.engine)
    yield BatchStore(database, Outbox(OUTBOX), owner="a/1/1/1", lease_seconds=15, now=clock)
    database.close()


class Script:
    """Gives prepared answers in turn, and remembers how long was slept between them."""

    def __init__(self, *answers: Answered) -> None:
        self.answers = list(answers)
        self.slept: list[float] = []

    async def ask(self, *_: Any) -> Answered:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def ran(
    store: BatchStore,
    tmp_path: Path,
    clock: FakeClock,
    script: Script,
    files: MemoryFiles | None = None,
    **more: Any,
) -> tuple[Batch, MemoryFiles]:
    files = files or MemoryFiles({"file-1": jsonl([request("one")])})
    batch = store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None
    made = runner(store, files, script.ask, tmp_path, clock, sleep=script.sleep, **more)
    asyncio.run(made.run(lease))
    found = store.get("default", batch.id)
    assert found is not None
    return found, files


def test_a_busy_gateway_is_waited_for_as_it_says(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    script = Script(
        answered(429, {}, retry_after="7", retry_after_ms="250"),
        answered(429, {}, retry_after="2"),
        answered(429, {}, retry_after="soon"),
        answered(429, {}),
        answered(200, {"usage": {"input_tokens": 5, "output_tokens": 1}}),
    )
    batch, _ = ran(store, tmp_path, clock, script)
    assert script.slept == [0.25, 2.0, 1.0, 1.0]
    assert (batch.status, batch.completed, batch.usage.input_tokens) == (Status.COMPLETED, 1, 5)


def test_a_failing_model_is_asked_less_and_less_often(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    script = Script(*[answered(503, {}, retry_after="1")] * 7, answered(200, {}))
    batch, _ = ran(store, tmp_path, clock, script, patience_seconds=3600)
    assert script.slept == [1, 2, 4, 8, 16, 30, 30]
    assert batch.completed == 1


def test_patience_with_a_failing_model_ends(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    script = Script(answered(503, {"error": {"code": "engine_failed"}}, retry_after="1"))
    batch, files = ran(store, tmp_path, clock, script, patience_seconds=0)
    assert (batch.status, batch.failed, script.slept) == (Status.COMPLETED, 1, [])
    (line,) = files.lines(batch.error_file_id)
    assert line["response"]["status_code"] == 503


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_other_failures_are_answers(
    store: BatchStore, tmp_path: Path, clock: FakeClock, status: int
) -> None:
    script = Script(answered(status, {"error": {"message": "no"}}))
    batch, files = ran(store, tmp_path, clock, script)
    (line,) = files.lines(batch.error_file_id)
    assert line["response"]["status_code"] == status and line["error"] is None
    assert batch.output_file_id is None


def test_a_turn_ends_between_lines_and_the_batch_goes_on_where_it_was(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    """Lines under way when the turn ends are waited for; no line is asked twice."""
    files = MemoryFiles({"file-1": jsonl([request(f"line-{n}") for n in range(6)])})
    batch = store.add(order("file-1"), "", "")
    asked: list[str] = []

    async def ask(tenant: str, key_id: str, path: str, body: bytes) -> Answered:
        asked.append(json.loads(body)["prompt"])
        if len(asked) == 2:
            clock.advance(TURN_SECONDS + 1)
        await asyncio.sleep(0)
        return answered(200, {})

    lease = store.claim()
    assert lease is not None
    rival = store.add(order("file-1", tenant="rival"), "", "")
    batches = runner(store, files, ask, tmp_path, clock)
    asyncio.run(batches.run(lease))
    left = store.get("default", batch.id)
    assert left is not None
    assert left.status == Status.IN_PROGRESS
    assert 2 <= left.completed < 6  # what was under way beside the second line is waited for
    turn = store.claim()
    assert turn is not None and turn.id == rival.id
    again = store.claim()
    assert again is not None and again.id == batch.id
    asyncio.run(batches.run(again))
    found = store.get("default", batch.id)
    assert found is not None and (found.status, found.completed) == (Status.COMPLETED, 6)
    assert sorted(asked) == [f"line-{n}" for n in range(6)]


def test_a_turn_that_is_over_stays_so(clock: FakeClock) -> None:
    """Also when an older look-up comes back later, from a slow database."""

    async def overlapping() -> list[bool]:
        looked: list[asyncio.Future[bool]] = []

        async def look_up() -> bool:
            looked.append(asyncio.get_running_loop().create_future())
            return await looked[-1]

        turn = Turn(look_up, timedelta(0), clock)
        asking = []
        for _ in range(2):
            asking.append(asyncio.create_task(turn.ends()))
            await asyncio.sleep(0)
            clock.advance(2)
        looked[1].set_result(True)
        assert await asking[1]
        looked[0].set_result(False)
        return [await asking[0], turn.is_over]

    assert asyncio.run(overlapping()) == [True, True]


def test_nobody_leaves_for_nobody(store: BatchStore, tmp_path: Path, clock: FakeClock) -> None:
    """A tenant's own other batches wait until one has ended, however long that takes."""
    files = MemoryFiles({"file-1": jsonl([request(f"line-{n}") for n in range(6)])})

    async def ask(*_: Any) -> Answered:
        clock.advance(TURN_SECONDS + 1)
        return answered(200, {})

    batch = store.add(order("file-1"), "", "")
    store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None and lease.id == batch.id
    asyncio.run(runner(store, files, ask, tmp_path, clock).run(lease))
    found = store.get("default", batch.id)
    assert found is not None and found.status is Status.COMPLETED


@pytest.mark.parametrize("status", [429, 503])
def test_a_line_that_is_put_off_holds_no_place(
    store: BatchStore, tmp_path: Path, clock: FakeClock, status: int
) -> None:
    """It is left unanswered at the turn's end, and asked in the batch's next turn."""
    files = MemoryFiles({"file-1": jsonl([request("one")])})
    script = Script(answered(status, {}), answered(200, {}))

    async def sleep(seconds: float) -> None:
        clock.advance(TURN_SECONDS + 1)

    batch = store.add(order("file-1"), "", "")
    lease = store.claim()
    store.add(order("file-1", tenant="rival"), "", "")
    assert lease is not None
    more: Any = {"patience_seconds": 3600, "sleep": sleep}
    batches = runner(store, files, script.ask, tmp_path, clock, **more)
    asyncio.run(batches.run(lease))
    rival, again = store.claim(), store.claim()
    assert rival is not None and rival.id != batch.id
    assert again is not None and again.id == batch.id
    asyncio.run(batches.run(again))
    found = store.get("default", batch.id)
    assert found is not None and (found.status, found.completed) == (Status.COMPLETED, 1)


def test_patience_with_a_failing_model_outlasts_turns(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    """A line whose model fails is given up after so long, however many turns it took."""
    files = MemoryFiles({"file-1": jsonl([request("one")])})
    script = Script(answered(503, {}))

    async def sleep(seconds: float) -> None:
        clock.advance(TURN_SECONDS + 1)

    batch = store.add(order("file-1"), "", "")
    store.add(order("file-1", tenant="rival"), "", "")
    more: Any = {
        "patience_seconds": 3.5 * TURN_SECONDS,
        "sleep": sleep,
        "monotonic": lambda: clock().timestamp(),
    }
    batches = runner(store, files, script.ask, tmp_path, clock, **more)
    for _ in range(3):
        lease = store.claim()
        assert lease is not None and lease.id == batch.id
        asyncio.run(batches.run(lease))
        rival = store.claim()
        assert rival is not None and rival.id != batch.id
        store.release(rival)
        clock.advance(1)
    lease = store.claim()
    assert lease is not None
    asyncio.run(batches.run(lease))
    found = store.get("default", batch.id)
    assert found is not None and (found.status, found.failed) == (Status.COMPLETED, 1)


def test_an_output_that_is_refused_fails_the_batch(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    files = MemoryFiles({"file-1": jsonl([request("one")])})
    files.refusal = InvalidArgument("the file is too large", reason="FILE_TOO_LARGE")
    batch, _ = ran(store, tmp_path, clock, Script(answered(200, {})), files)
    assert batch.status is Status.FAILED
    assert [error.code for error in batch.errors] == ["file_too_large"]


def test_a_data_service_that_is_away_is_no_answer(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    files = MemoryFiles({"file-1": jsonl([request("one")])})
    files.refusal = Unavailable("away", reason="SERVICE_UNAVAILABLE")
    with pytest.raises(Unavailable):
        ran(store, tmp_path, clock, Script(answered(200, {})), files)
    (batch,) = store.page("default", 1, "")
    assert (batch.status, batch.completed) == (Status.FINALIZING, 1)
    files.refusal = None
    clock.advance(16)
    lease = store.claim()
    assert lease is not None
    asyncio.run(runner(store, files, None, tmp_path, clock).run(lease))
    (batch,) = store.page("default", 1, "")
    assert batch.status is Status.COMPLETED and len(files.lines(batch.output_file_id)) == 1


def test_nothing_is_left_in_the_scratch_directory(
    store: BatchStore, tmp_path: Path, clock: FakeClock
) -> None:
    scratch = tmp_path / "scratch"
    ran(store, scratch, clock, Script(answered(200, {})))
    assert list(scratch.iterdir()) == []


def test_too_many_lines_and_too_long_ones() -> None:
    limits = batch_input.InputLimits(lines=2, line_bytes=500)
    lines = jsonl([request(str(number)) for number in range(3)]).splitlines(keepends=True)
    found = batch_input.check(lines, ENDPOINT, limits)
    assert [error.code for error in found.errors] == ["too_many_tasks"]
    long = jsonl([request("1"), request("2", user="x" * 500)]).splitlines(keepends=True)
    found = batch_input.check(long, ENDPOINT, limits)
    assert [(error.code, error.line) for error in found.errors] == [("request_too_large", 2)]


def test_errors_are_told_up_to_a_hundred() -> None:
    limits = batch_input.InputLimits(lines=1000, line_bytes=500)
    found = batch_input.check([b"{\n"] * 500, ENDPOINT, limits)
    assert [error.line for error in found.errors] == list(range(1, 101))


def test_blank_lines_are_no_lines_and_count_as_places() -> None:
    source = b"\n" + jsonl([request("1")]) + b"  \r\n" + jsonl([request("2")]).rstrip()
    lines = source.splitlines(keepends=True)
    found = batch_input.check(lines, ENDPOINT, LIMITS)
    assert [(line.number, line.custom_id) for line in found.lines] == [(2, "1"), (4, "2")]
    chosen = list(batch_input.chosen(lines, {4}))
    assert [(number, one["custom_id"]) for number, one in chosen] == [(4, "2")]


def a_key(clock: FakeClock, **more: Any) -> Key:
    limits = KeyLimits(5, None, 2, Priority.HIGH)
    return Key("key-1", "acme", "", Role.MEMBER, clock(), limits=limits, **more)


def test_a_line_is_asked_in_its_keys_name_at_low_priority(clock: FakeClock) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append((scope["path"], scope["state"]["principal"], json.loads(message["body"])))
        headers = [(b"retry-after", b"3")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"a"', "more_body": True})
        await send({"type": "http.response.body", "body": b": 1}"})
        raise RuntimeError("as Starlette raises again what it has answered")

    desk = Desk(app, lambda tenant, key_id: a_key(clock))
    answer = asyncio.run(desk.ask("acme", "key-1", "/v1/completions", b'{"n": 1}'))
    assert (answer.status, answer.body, answer.retry_seconds()) == (429, b'{"a": 1}', 3.0)
    ((path, principal, body),) = seen
    assert (path, body) == ("/v1/completions", {"n": 1})
    assert (principal.tenant, principal.key_id) == ("acme", "key-1")
    assert principal.limits == KeyLimits(5, None, 2, Priority.LOW)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_key_that_is_no_more_is_refused(clock: FakeClock, is_known: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("nobody may get here")

    key = a_key(clock, revoke_time=clock()) if is_known else None
    desk = Desk(app, lambda tenant, key_id: key)
    answer = asyncio.run(desk.ask("acme", "key-1", "/v1/completions", b"{}"))
    assert answer.status == 401 and answer.retry_seconds() is None
    assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"


def test_should_retry_comes_before_all_else() -> None:
    told = answered(429, {}, retry_after="1", x_should_retry="false")
    assert told.retry_seconds() is None
