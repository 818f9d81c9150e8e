"""Deadlines: whatever the moment, the answer ends, and nothing of it goes on."""

import asyncio
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request as HttpRequest

from millrace_gateway import bundle
from millrace_gateway.admission import Capacity
from millrace_gateway.deadline import Deadline, DeadlineExceeded, Expiring, seconds_to, within
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.generation import Generator, Request
from millrace_gateway.health import Health
from millrace_gateway.limits import Limiter
from millrace_gateway.placement import Placement
from millrace_gateway.rest.deadlines import deadline_of, end_of
from millrace_gateway.route import Route, RouteTable, Target
from millrace_gateway.triton import Delta, EngineFailed, EngineRequest
from millrace_runtime.errors import InvalidArgument, MillraceError

_Result = TypeVar("_Result")


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: when nothing else is to be done, it is later at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_seconds += timeout or 0.0
        return super().select(0)


def run(work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run a coroutine in a loop whose clock starts at 0 and costs no time."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_seconds  # type: ignore[method-assign]

    async def main() -> _Result:
        return await work()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def numbers(count: int, pause_seconds: float) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(pause_seconds)
        yield number


def test_work_is_cancelled_at_its_moment() -> None:
    async def scenario() -> None:
        assert await within(None, asyncio.sleep(9, "done")) == "done"
        assert await within(now() + 2, asyncio.sleep(1, "done")) == "done"
        with pytest.raises(DeadlineExceeded):
            await within(now() + 2, asyncio.sleep(60))
        assert now() == 9 + 1 + 2

    run(scenario)


def test_a_timeout_of_the_work_itself_is_another() -> None:
    async def late() -> None:
        raise TimeoutError("of its own")

    async def scenario() -> None:
        with pytest.raises(TimeoutError, match="of its own"):
            await within(now() + 2, late())

    run(scenario)


def test_what_is_left() -> None:
    async def scenario() -> None:
        assert seconds_to(None) is None
        assert seconds_to(now() + 3) == 3
        with pytest.raises(DeadlineExceeded):
            seconds_to(now())

    run(scenario)


def test_whoever_cancels_a_reader_is_not_taken_for_its_deadline() -> None:
    """Both in one turn of the loop: then the cancellation holds, as with asyncio.timeout."""

    async def scenario() -> None:
        async def read() -> None:
            async for _ in items:
                pass

        async def give_up() -> None:
            raise AssertionError("somebody waits")

        items = Expiring(numbers(9, 10), 5, give_up)
        reading = asyncio.ensure_future(read())
        asyncio.get_running_loop().call_at(5, reading.cancel)
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert reading.cancelled()
        await items.aclose()

    run(scenario)


def test_a_reader_that_is_busy_meanwhile_is_left_alone() -> None:
    async def scenario() -> None:
        given_up_at: list[float] = []

        async def give_up() -> None:
            given_up_at.append(now())

        items = Expiring(numbers(9, 1), 5.5, give_up)
        seen = [await anext(items)]
        await asyncio.sleep(60)
        assert given_up_at == [5.5]
        with pytest.raises(DeadlineExceeded):
            seen.append(await anext(items))
        assert seen == [0]
        await items.aclose()

    run(scenario)


def test_what_was_closed_in_time_is_left_alone() -> None:
    async def scenario() -> None:
        async def give_up() -> None:
            raise AssertionError("it was closed")

        items = Expiring(numbers(1, 1), 5, give_up)
        assert [number async for number in items] == [0]
        await items.aclose()
        await asyncio.sleep(60)
        assert items._giving_up is None

    run(scenario)


@dataclass(frozen=True)
class Script:
    """What the engine does for one request: pieces, each after a pause; then it may fail."""

    pieces: int
    pause_seconds: float
    fails: bool


@dataclass
class ScriptedEngine:
    """Answers ``r-3`` by script 3; notes when it was asked and who is running."""

    scripts: list[Script]
    asked_at: list[float] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)

    async def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        self.asked_at.append(now())
        script = self.scripts[int(request.id.removeprefix("r-"))]
        self.running[request.id] += 1
        try:
            for number in range(script.pieces + 1):
                await asyncio.sleep(script.pause_seconds)
                if script.fails and number == script.pieces:
                    raise EngineFailed("as the script has it")
                yield Delta("x", 1, "stop" if number == script.pieces else "", 5)
        finally:
            self.running -= Counter((request.id,))


class Bench:
    """A generator on a scripted engine, with one endpoint and so many places."""

    def __init__(self, scripts: list[Script], places: int) -> None:
        self.engine = ScriptedEngine(scripts)
        routes = RouteTable()
        target = Target(1, 1.0, ("a:1",))
        routes.replace(1, [Route("default", "demo", "default.demo", (target,))])
        capacity = Capacity(places, dict.fromkeys(Priority, 1.0), dict.fromkeys(Priority, 9))
        self.entrance = Entrance(99, capacity, wait_seconds=1000)
        self.placement = Placement(routes, self.entrance, Health())
        self.generator = Generator(self.placement, self.engine, Limiter())

    def requests(self, deadline: Deadline, is_streamed: bool = True) -> list[Request]:
        return [
            Request(
                f"r-{index}",
                "default",
                "chat",
                "demo",
                lambda _target: "x",
                {},
                is_streamed=is_streamed,
                deadline=deadline,
            )
            for index in range(len(self.engine.scripts))
        ]

    async def ask(self, deadline: Deadline, reading_seconds: float = 0) -> str:
        """One request to its end, with pauses between pieces: how it ended."""
        try:
            started = await bundle.start(self.generator, self.requests(deadline))
            try:
                async for _ in started.deltas():
                    await asyncio.sleep(reading_seconds)
            finally:
                await started.close()
        except MillraceError as error:
            return error.reason
        return "ok"

    def check_nothing_is_held(self) -> None:
        assert not +self.engine.running
        assert not self.entrance.in_progress
        assert self.placement.active == 0


async def settled() -> None:
    """Let what is being closed be closed."""
    for _ in range(20):
        await asyncio.sleep(0)


STEPS = st.sampled_from([0.0, 0.5, 1.0, 2.0])  # so that moments often coincide
SCRIPT = st.builds(Script, st.integers(0, 4), STEPS, st.booleans())
MOMENTS = st.none() | st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 7.0])


@settings(max_examples=400, deadline=None)
@given(
    scripts=st.lists(SCRIPT, min_size=1, max_size=3),
    begins_by=MOMENTS,
    ends_by=MOMENTS,
    cancel_at=MOMENTS,
    reading_seconds=STEPS,
    places=st.integers(1, 3),
)
def test_no_moment_leaks(
    scripts: list[Script],
    begins_by: float | None,
    ends_by: float | None,
    cancel_at: float | None,
    reading_seconds: float,
    places: int,
) -> None:
    """Deadlines and leaving clients, at any moment: the engine is let go by then."""

    async def scenario() -> None:
        bench = Bench(scripts, places)
        begins = min((m for m in (begins_by, ends_by) if m is not None), default=None)
        asking = asyncio.ensure_future(bench.ask(Deadline(begins, ends_by), reading_seconds))
        loop = asyncio.get_running_loop()
        if cancel_at is not None:
            loop.call_at(cancel_at, asking.cancel)
        if ends_by is not None:
            await asyncio.sleep(ends_by)
            await settled()
            bench.check_nothing_is_held()
            assert all(moment <= ends_by for moment in bench.engine.asked_at)
        with suppress(asyncio.CancelledError):
            how = await asking
            assert how != "ok" or not any(script.fails for script in scripts)
            assert how != "DEADLINE_EXCEEDED" or begins_by is not None or ends_by is not None
        await settled()
        bench.check_nothing_is_held()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(scenario)


def test_who_waits_in_the_queue_too_long_never_reaches_the_engine() -> None:
    async def scenario() -> None:
        bench = Bench([Script(100, 1.0, fails=False)], places=1)
        first = asyncio.ensure_future(bench.ask(Deadline()))
        await asyncio.sleep(2)
        assert await bench.ask(Deadline(begins_by=7)) == "DEADLINE_EXCEEDED"
        assert now() == 7
        assert len(bench.engine.asked_at) == 1
        assert await first == "ok", "the other hears nothing of it"
        assert await bench.ask(Deadline(begins_by=now() + 5)) == "ok", "its place is not lost"

    run(scenario)


def test_a_stream_that_has_begun_in_time_may_take_longer() -> None:
    async def scenario() -> None:
        bench = Bench([Script(9, 1.0, fails=False)] * 2, places=1)  # the second waits for the first
        assert await bench.ask(Deadline(begins_by=2)) == "ok"
        assert now() == 20

    run(scenario)


def test_an_answer_that_is_complete_is_not_late() -> None:
    """Whole answers come at once; a client that takes it late has it."""

    async def scenario() -> None:
        bench = Bench([Script(0, 1.0, fails=False)], places=1)
        [request] = bench.requests(Deadline(2, 2), is_streamed=False)
        started = await bundle.start(bench.generator, [request])
        await asyncio.sleep(60)
        assert [delta.text for delta in await bundle.collect(started)] == ["x"]

    run(scenario)


def http(**headers: str) -> HttpRequest:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return HttpRequest({"type": "http", "headers": raw})


def deadline(is_streamed: bool, **headers: str) -> Deadline:
    async def read() -> Deadline:
        return deadline_of(http(**headers), is_streamed)

    return run(read)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2H", 7200), ("3M", 180), ("30S", 30), ("1500m", 1.5), ("20u", 2e-5), ("99999999n", 0.1)],
)
def test_the_header_is_read_as_grpc_writes_it(value: str, seconds: float) -> None:
    expected = pytest.approx(seconds)
    assert deadline(False, grpc_timeout=value) == Deadline(expected, expected)


@pytest.mark.parametrize("value", ["", "30", "S", "1.5S", "-1S", "0S", "123456789S", "1s", "٣S"])
def test_anything_else_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidArgument, match="grpc-timeout") as caught:
        deadline(False, grpc_timeout=value)
    assert caught.value.field == "grpc-timeout"
    with pytest.raises(InvalidArgument, match="grpc-timeout"):
        end_of(http(grpc_timeout=value))


@pytest.mark.parametrize("value", ["", "soon", "0", "-3", "nan", "inf"])
def test_the_sdks_header_is_a_hint(value: str) -> None:
    assert deadline(False, x_stainless_read_timeout=value) == Deadline()


def test_what_the_sdk_waits_for() -> None:
    """All of an answer, but of a stream the first piece; the sooner of both headers holds."""
    assert deadline(False, x_stainless_read_timeout="4.5") == Deadline(4.5, 4.5)
    assert deadline(True, x_stainless_read_timeout="4.5") == Deadline(4.5, None)
    both = {"x_stainless_read_timeout": "600", "grpc_timeout": "5S"}
    assert deadline(False, **both) == Deadline(5, 5)
    assert deadline(True, **both) == Deadline(5, 5)
    patient = {"x_stainless_read_timeout": "5", "grpc_timeout": "10S"}
    assert deadline(True, **patient) == Deadline(5, 10)
    assert deadline(False, **patient) == Deadline(5, 5)
