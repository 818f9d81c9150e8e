"""Many answers over one call: each reader gets its own, whatever the others do."""

import asyncio
import json
import struct
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from millrace_gateway.shared_call import SharedCall
from millrace_gateway.triton import EngineFailed, EngineRequest
from millrace_runtime.errors import InvalidArgument

_END = object()


class PlayedCall:
    """A ``ModelStreamInfer`` call whose engine says what the test has it say."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.is_half_closed = False
        self.was_cancelled = False
        self._messages: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self) -> "PlayedCall":
        return self

    @property
    def ModelStreamInfer(self) -> "PlayedCall":
        return self

    async def write(self, message: Any) -> None:
        self.written.append(message)

    async def done_writing(self) -> None:
        self.is_half_closed = True
        self._messages.put_nowait(_END)

    def cancel(self) -> None:
        self.was_cancelled = True
        self._messages.put_nowait(asyncio.CancelledError())

    def say(self, *parcels: dict[str, Any]) -> None:
        message = service_pb2.ModelStreamInferResponse()
        content = json.dumps(parcels).encode()
        message.infer_response.outputs.add(name="batch", datatype="BYTES", shape=[1])
        message.infer_response.raw_output_contents.append(struct.pack("<I", len(content)) + content)
        self._messages.put_nowait(message)

    def refuse(self, identifier: str, text: str) -> None:
        message = service_pb2.ModelStreamInferResponse(error_message=text)
        message.infer_response.id = identifier
        self._messages.put_nowait(message)

    def die(self, error: Exception) -> None:
        self._messages.put_nowait(error)

    def __aiter__(self) -> "PlayedCall":
        return self

    async def __anext__(self) -> Any:
        message = await self._messages.get()
        if isinstance(message, BaseException):
            raise message
        if message is _END:
            raise StopAsyncIteration
        return message

    def asked(self) -> list[str]:
        return [each.id for each in self.written if not each.parameters["cancel"].string_param]

    def cancelled(self) -> set[str]:
        return {each.parameters["cancel"].string_param for each in self.written} - {""}


def parcel(identifier: str, text: str, reason: str = "") -> dict[str, Any]:
    end = {"prompt_token_count": 3, "timing": '{"first_token_seconds": 0.5}'} if reason else {}
    return {"id": identifier, "text": text, "token_count": 1, "finish_reason": reason, **end}


def request(name: str) -> EngineRequest:
    return EngineRequest(name, "default.demo", 1, "x", b"{}", is_plain=True)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def read(call: SharedCall, name: str, most: int | None = None) -> str:
    """What one reader makes of its answer; it leaves after ``most`` pieces."""
    text, answer = "", call.generate(request(name))
    try:
        async for delta in answer:
            text += delta.text
            most = None if most is None else most - 1
            if most == 0:
                return f"{text} left"
    except (EngineFailed, InvalidArgument) as error:
        return f"{text} {type(error).__name__}"
    finally:
        await answer.aclose()  # type: ignore[attr-defined]  # a generator
    return f"{text} done"


def run(scenario: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(bounded())


def test_two_answers_in_one_message() -> None:
    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 600, 30)
        readers = [asyncio.create_task(read(call, name)) for name in ("a", "b")]
        await turns()
        played.say(parcel("a.1", "A"), parcel("b.2", "B"))
        played.say(parcel("b.2", "B", "stop"), parcel("a.1", "A", "length"))
        assert await asyncio.gather(*readers) == ["AA done", "BB done"]
        assert len({each.parameters["group"].string_param for each in played.written}) == 1
        await turns()
        assert played.is_half_closed, "Triton does not stop while a call is open"
        assert not call.is_open

    run(scenario())


def test_refusals_name_what_is_wrong_and_meet_one_alone() -> None:
    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 600, 30)
        good = asyncio.create_task(read(call, "good"))
        bad = asyncio.create_task(anext(call.generate(request("bad"))))  # type: ignore[arg-type]
        await turns()
        played.refuse("bad.2", "INVALID_ARG: temperature must be at least 0")
        with pytest.raises(InvalidArgument, match=r"^temperature must") as refused:
            await bad
        assert refused.value.field == "temperature"
        played.say(parcel("good.1", "yes", "stop"))
        assert await good == "yes done"

    run(scenario())


def test_what_breaks_the_call_breaks_every_answer() -> None:
    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 600, 30)
        readers = [asyncio.create_task(read(call, name)) for name in ("a", "b")]
        await turns()
        played.say(parcel("a.1", "A"))
        unavailable = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, None, "gone")
        played.die(unavailable)
        assert await asyncio.gather(*readers) == ["A EngineFailed", " EngineFailed"]
        assert not call.is_open
        assert await read(call, "late") == " EngineFailed", "who comes after the end hears so"

    run(scenario())


def test_a_silent_engine_is_given_up() -> None:
    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 600, 0.05)
        assert await read(call, "a") == " EngineFailed"
        assert played.was_cancelled

    run(scenario())


def test_an_answer_has_a_deadline_of_its_own() -> None:
    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 0.05, 30)
        assert await read(call, "a") == " EngineFailed"
        await turns()
        assert played.cancelled() == {"a.1"}, "the engine need not go on"

    run(scenario())


steps = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["piece", "piece", "end", "refuse"])), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(
    leavers=st.dictionaries(st.integers(0, 5), st.integers(1, 3), max_size=3),
    hang_up=st.sets(st.integers(0, 5), max_size=2),
    script=steps,
    breaks=st.booleans(),
)
def test_no_answer_gets_anothers_text(
    leavers: dict[int, int], hang_up: set[int], script: list[tuple[int, str]], breaks: bool
) -> None:
    """Six readers; some leave after a few pieces, some are cancelled, some are refused."""

    async def scenario() -> None:
        played = PlayedCall()
        call = SharedCall(played, 600, 30)
        tasks = [asyncio.create_task(read(call, f"r{n}", leavers.get(n))) for n in range(6)]
        await turns()
        ids = played.asked()
        over: Counter[int] = Counter()
        for number, (who, what) in enumerate(script):
            if number == 5:
                for each in hang_up:
                    tasks[each].cancel()
            if over[who]:
                continue
            over[who] = what != "piece"
            if what == "refuse":
                played.refuse(ids[who], "UNAVAILABLE: broken")
            else:
                played.say(parcel(ids[who], f"{who}", "stop" if what == "end" else ""))
            await turns(number % 3)
        if breaks:
            played.die(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, None, "gone"))
        await turns()
        await _settle(tasks)
        for who, task in enumerate(tasks):
            if not task.cancelled():
                text, end = task.result().split(" ")
                assert set(text) <= {str(who)}
                assert end in ("done", "left", "EngineFailed")
                assert end != "done" or over[who]
        await turns()
        if not breaks:
            told = {int(each[1]) for each in played.cancelled()}
            for who, task in enumerate(tasks):
                is_done = not task.cancelled() and task.result().endswith("done")
                assert over[who] or is_done or who in told, "the engine need not go on"
                assert not (is_done and who in told)
        assert not call.is_open

    run(scenario())


async def _settle(tasks: list[asyncio.Task[str]]) -> None:
    """Whoever still waits for an engine that says nothing more hangs up."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
