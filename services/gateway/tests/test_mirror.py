"""Copies of requests to a version in the shadow: what is compared, and that no client notices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from opentelemetry import trace

from millrace_gateway.admission import Capacity
from millrace_gateway.answers import AnswerCounts, ShadowAnswers, agreement
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.mirror import Asked, Mirror
from millrace_gateway.placement import Place
from millrace_gateway.route import Choice, Route, Target
from millrace_gateway.triton import Delta, EngineFailed, EngineRequest
from millrace_runtime.errors import InvalidArgument, ResourceExhausted

CLIENT = trace.INVALID_SPAN


class PlayedEngine:
    """Answers with ``text``, when ``gate`` is open; or fails."""

    def __init__(self, text: str = "abcd", failure: Exception | None = None) -> None:
        self.text = text
        self.failure = failure
        self.finish_reason = "stop"
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[EngineRequest] = []
        self.running = 0

    async def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        self.asked.append(request)
        self.running += 1
        try:
            await self.gate.wait()
            if self.failure is not None:
                raise self.failure
            yield Delta(self.text, len(self.text), self.finish_reason)
        finally:
            self.running -= 1


def places(count: int) -> Entrance:
    capacity = Capacity(
        places=count, shares=dict.fromkeys(Priority, 1.0), queues=dict.fromkeys(Priority, 1)
    )
    return Entrance(10, capacity, wait_seconds=0.01)


def route(mirror_share: float = 1.0) -> Route:
    old = Target(version=1, share=1.0, endpoints=("old:1",))
    new = Target(version=2, share=0.0, endpoints=("new:1",), mirror_share=mirror_share)
    return Route("acme", "demo", "acme.demo", (old, new))


class World:
    def __init__(self, engine: PlayedEngine, *, maximum: int = 8, rooms: int = 4) -> None:
        self.engine = engine
        self.counts = AnswerCounts()
        self.entrance = places(rooms)
        self.mirror = Mirror(engine, self.entrance, self.counts, maximum, lambda: 0.5)
        self.refusal: Exception | None = None

    async def answer(
        self,
        pieces: tuple[str, ...] = ("ab", "cd"),
        found: Route | None = None,
        **sampling: object,
    ) -> str:
        """What a client reads whose request is followed; the copies have ended then."""
        text = await self.read(pieces, found, **sampling)
        await self.ended()
        return text

    async def read(
        self, pieces: tuple[str, ...] = ("ab",), found: Route | None = None, **sampling: object
    ) -> str:
        given = found or route()
        place = Place(given, Choice(given.targets[0], "old:1"))
        asked = Asked("chat", {"temperature": 0, **sampling}, self.ask_of, CLIENT)
        followed = self.mirror.follow(self.original(pieces), place, asked)
        return "".join([delta.text async for delta in followed])

    async def original(self, pieces: tuple[str, ...]) -> AsyncIterator[Delta]:
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            yield Delta(piece, len(piece), "stop" if last else "")

    def ask_of(self, place: Place, span: Any) -> EngineRequest:
        if self.refusal is not None:
            raise self.refusal
        return EngineRequest("id", "acme.demo", place.version, "prompt", b"{}")

    async def ended(self) -> None:
        while self.mirror._copies:
            await asyncio.wait(list(self.mirror._copies))
            await asyncio.sleep(0)

    def shadow(self) -> ShadowAnswers:
        return self.counts.shadow("acme", "demo", 1, 2)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_both_answers_are_compared_and_the_old_one_is_returned() -> None:
    async def test() -> None:
        world = World(PlayedEngine("abXd!"))
        assert await world.answer(("ab", "cd")) == "abcd"
        shadow = world.shadow()
        assert (shadow.compared, shadow.agreement) == (1, pytest.approx(2 / 5))
        assert (shadow.old_tokens, shadow.new_tokens) == (4, 5)
        assert (shadow.truncated, shadow.failed) == (0, 0)
        (copy,) = world.engine.asked
        assert (copy.version, copy.id) == (2, "id-mirror")
        (counted,) = world.counts.all()  # the new version's, which a rollout is judged by
        assert (counted.version, counted.requests, counted.failures) == (2, 1, 0)

    run(test)


def test_an_answer_that_is_cut_where_the_old_one_ended_is_truncated() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        world.engine.finish_reason = "length"
        await world.answer()
        assert world.shadow().truncated == 1

    run(test)


@pytest.mark.parametrize(
    ("sampling", "compared"),
    [({"temperature": 0.7}, 0), ({"temperature": None}, 0), ({"temperature": 0.7, "seed": 4}, 1)],
)
def test_what_has_several_right_answers_is_not_compared(
    sampling: dict[str, object], compared: int
) -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        await world.answer(**sampling)
        assert world.shadow().compared == compared
        assert world.counts.all()[0].requests == 1

    run(test)


@pytest.mark.parametrize(
    "failure", [EngineFailed("it is gone"), InvalidArgument("it refuses", field="x")]
)
def test_a_copy_that_fails_is_counted_and_not_tried_again(failure: Exception) -> None:
    async def test() -> None:
        world = World(PlayedEngine(failure=failure))
        assert await world.answer() == "abcd"
        assert (world.shadow().failed, world.shadow().compared) == (1, 0)
        assert len(world.engine.asked) == 1
        (counted,) = world.counts.all()
        assert (counted.version, counted.requests, counted.failures) == (2, 1, 1)

    run(test)


def test_a_template_that_refuses_is_the_new_versions_failure() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        world.refusal = InvalidArgument("the template raised", field="messages")
        assert await world.answer() == "abcd"
        assert world.shadow().failed == 1

    run(test)


def test_a_client_does_not_wait_for_the_copy() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        world.engine.gate.clear()
        assert await world.read(("ab", "cd")) == "abcd"
        assert world.shadow().compared == 0
        world.engine.gate.set()
        await world.ended()
        assert world.shadow().compared == 1

    run(test)


def test_only_the_share_of_the_requests_is_mirrored() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        await world.answer(found=route(mirror_share=0.4))  # the number drawn is 0.5
        assert not world.engine.asked
        await world.answer(found=route(mirror_share=0.6))
        assert len(world.engine.asked) == 1

    run(test)


def test_copies_are_bounded() -> None:
    async def test() -> None:
        world = World(PlayedEngine(), maximum=2)
        world.engine.gate.clear()
        for _ in range(5):
            await world.read()
        await asyncio.sleep(0)
        assert world.engine.running == 2
        await world.mirror.close()
        assert world.engine.running == 0

    run(test)


def test_copies_take_only_room_that_is_to_spare() -> None:
    async def test() -> None:
        world = World(PlayedEngine(), rooms=2)
        await world.entrance.enter("new:1", ["new:1"], Priority.DEFAULT, "key")
        world.engine.gate.clear()
        await world.read()
        await world.read()
        await asyncio.sleep(0)
        assert world.engine.running == 1  # one place of two is the client's
        await world.mirror.close()

    run(test)


def test_all_copies_are_given_up_when_a_request_finds_no_place() -> None:
    async def test() -> None:
        world = World(PlayedEngine(), rooms=2)
        world.engine.gate.clear()
        await world.read()
        await asyncio.sleep(0)
        assert world.engine.running == 1
        for _ in range(2):  # a copy keeps nobody out
            await world.entrance.enter("new:1", ["new:1"], Priority.DEFAULT, "key")
        with pytest.raises(ResourceExhausted):
            await world.entrance.enter("new:1", ["new:1"], Priority.DEFAULT, "key")
        await world.ended()
        assert world.engine.running == 0
        assert not world.shadow().failed

    run(test)


def test_after_the_end_no_copy_begins() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        await world.mirror.close()
        assert await world.answer() == "abcd"
        assert not world.engine.asked

    run(test)


def test_a_client_that_leaves_is_answered_for_by_nobody() -> None:
    async def test() -> None:
        world = World(PlayedEngine())
        place = Place(route(), Choice(route().targets[0], "old:1"))
        asked = Asked("chat", {"temperature": 0}, world.ask_of, CLIENT)
        followed = world.mirror.follow(world.original(("ab", "cd")), place, asked)
        assert (await anext(followed)).text == "ab"
        await followed.aclose()  # type: ignore[attr-defined]
        await world.ended()
        assert (world.shadow().compared, world.shadow().failed) == (0, 0)
        assert world.counts.all()[0].requests == 1

    run(test)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [("", "", 1.0), ("abc", "abc", 1.0), ("abc", "", 0.0), ("abc", "abcdef", 0.5), ("x", "y", 0)],
)
def test_agreement(old: str, new: str, part: float) -> None:
    assert agreement(old, new) == agreement(new, old) == part
