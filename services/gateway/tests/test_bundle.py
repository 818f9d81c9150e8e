"""Completions side by side: nothing is mixed up, and none is left running, whatever happens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_gateway import bundle
from millrace_gateway.admission import Capacity
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.generation import Generator, Request
from millrace_gateway.health import Health
from millrace_gateway.limits import Limiter
from millrace_gateway.placement import Placement
from millrace_gateway.route import Route, RouteTable, Target
from millrace_gateway.triton import Delta, Engine, EngineFailed, EngineRequest
from millrace_runtime.errors import MillraceError, NotFound


@dataclass(frozen=True)
class Script:
    """What the engine does for one request.

    Attributes:
        pieces: messages before the last; each is waited for as many turns of the loop as
            ``turns`` says.
        fails_after: after so many messages it breaks off; None: it does not.
    """

    pieces: int
    turns: int
    fails_after: int | None = None


@dataclass
class ScriptedEngine:
    """Answers request ``r-3`` with ``3:0 3:1 …``; counts who is running."""

    scripts: list[Script]
    running: Counter[str] = field(default_factory=Counter)
    versions: list[int] = field(default_factory=list)

    async def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        index = int(request.id.removeprefix("r-"))
        script = self.scripts[index]
        self.versions.append(request.version)
        self.running[request.id] += 1
        try:
            for number in range(script.pieces + 1):
                for _ in range(script.turns):
                    await asyncio.sleep(0)
                if script.fails_after == number:
                    raise EngineFailed("as the script has it")
                is_last = number == script.pieces
                yield Delta(f"{index}:{number} ", 1, "stop" if is_last else "", 5 * is_last)
        finally:
            self.running[request.id] -= 1


def expected(index: int, script: Script) -> str:
    return "".join(f"{index}:{number} " for number in range(script.pieces + 1))


def table(*versions: int) -> RouteTable:
    targets = [Target(v, 1 / len(versions), ("a:1", "b:1")) for v in versions]
    routes = RouteTable()
    routes.replace(1, [Route("default", "demo", "default.demo", tuple(targets))])
    return routes


def generator_of(routes: RouteTable, engine: Engine, places: int = 100) -> Generator:
    shares = dict.fromkeys(Priority, 1.0)
    queues = dict.fromkeys(Priority, 100)
    entrance = Entrance(1000, Capacity(places, shares, queues), wait_seconds=10)
    return Generator(Placement(routes, entrance, Health()), engine, Limiter())


def requests(count: int) -> list[Request]:
    return [
        Request(f"r-{index}", "default", "chat", "demo", lambda _target: "x", {})
        for index in range(count)
    ]


async def settled() -> list[asyncio.Task[object]]:
    """Let what is being closed be closed: the tasks, not ours, that are left after that."""
    for _ in range(50):
        await asyncio.sleep(0)
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


scripts = st.lists(
    st.builds(
        Script,
        pieces=st.integers(0, 5),
        turns=st.integers(0, 4),
        fails_after=st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(
    scripts=scripts,
    cancel_after=st.lists(st.integers(0, 40), max_size=2),
    stop_after=st.integers(0, 40),
    places=st.integers(1, 4),
)
def test_no_history_mixes_or_leaks(
    scripts: list[Script], cancel_after: list[int], stop_after: int, places: int
) -> None:
    """Streams that interleave, fail, wait for each other's places at the two endpoints, are
    cancelled at any turn, or are left by their reader."""

    async def history() -> None:
        engine = ScriptedEngine(scripts)
        generator = generator_of(table(1), engine, places)
        texts: Counter[int] = Counter()
        seen = [""] * len(scripts)

        async def read() -> None:
            started = await bundle.start(generator, requests(len(scripts)))
            try:
                async for index, delta in started.deltas():
                    seen[index] += delta.text
                    texts[index] += 1
                    if sum(texts.values()) > stop_after:
                        return
            finally:
                await started.close()
            assert seen == [expected(*pair) for pair in enumerate(scripts)]
            assert started.prompt_tokens == 5 * len(scripts)
            assert started.completion_tokens == sum(script.pieces + 1 for script in scripts)

        reading = asyncio.ensure_future(read())
        for turns in cancel_after:  # whoever is cancelled may be cancelled again, in its clean-up
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
        with suppress(MillraceError, asyncio.CancelledError):
            async with asyncio.timeout(20):
                await reading
        assert await settled() == []
        for index, script in enumerate(scripts):
            assert expected(index, script).startswith(seen[index]), "a choice's own, in order"
        assert not +engine.running, "no generation is left in the engine"
        assert generator.placement.active == 0, "nor counted as running"
        assert generator.placement.entrance.in_progress == {}, "nor holds a place"

    asyncio.run(history())


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4, unique=True), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_all_choices_are_of_one_version(versions: list[int], random_number: float) -> None:
    async def history() -> None:
        engine = ScriptedEngine([Script(1, 1)] * 5)
        generator = generator_of(table(*versions), engine)
        numbers = iter([random_number, *([0.0, 0.99] * 5)])
        generator._random_number = lambda: next(numbers)
        started = await bundle.start(generator, requests(5))
        await bundle.collect(started)
        assert len(set(engine.versions)) == 1

    asyncio.run(history())


def test_a_version_that_leaves_between_two_choices_is_replaced() -> None:
    """The first began with version 1, which is unloaded before the others begin."""

    class Leaving(ScriptedEngine):
        async def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
            routes.replace(2, table(2).of_tenant("default"))
            async for delta in super().generate(endpoint, request):
                yield delta

    async def history() -> None:
        engine = Leaving([Script(1, 1)] * 3)
        generator = generator_of(routes, engine)
        started = await bundle.start(generator, requests(3))
        answers = await bundle.collect(started)
        assert [answer.text for answer in answers] == ["0:0 0:1 ", "1:0 1:1 ", "2:0 2:1 "]
        assert started.target.version == 2
        assert engine.versions == [1, 2, 2, 2], "one was begun in vain"
        assert not +engine.running

    routes = table(1)
    asyncio.run(history())


def test_what_cannot_begin_is_said_as_it_is() -> None:
    async def history() -> None:
        engine = ScriptedEngine([Script(1, 1)] * 3)
        generator = generator_of(RouteTable(), engine)
        generator.routes.replace(1, [])
        with pytest.raises(NotFound):
            await bundle.start(generator, requests(3))
        assert generator.placement.active == 0

    asyncio.run(history())


def test_prompts_count_once() -> None:
    async def history() -> None:
        generator = generator_of(table(1), ScriptedEngine([Script(0, 0)] * 6))
        started = await bundle.start(generator, requests(6), repeats=3)
        await bundle.collect(started)
        assert (started.prompt_tokens, started.completion_tokens) == (10, 6)

    asyncio.run(history())
