"""Answers that leave the engine together, on real Triton: the same as those that leave alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from tritonclient.grpc import service_pb2_grpc

from millrace_gateway.shared_call import SharedCall
from millrace_gateway.triton import Delta, EngineFailed, EngineRequest
from millrace_runtime.errors import InvalidArgument
from tests.engine.served import MODEL, ServedEngine, is_installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
PROMPTS = [f"{word} statement" for word in ("The import", "A while", "An if", "Each with")]
WAIT_SECONDS = 60


def request(name: str, prompt: str, version: int = 1, **sampling: Any) -> EngineRequest:
    given = {"temperature": 0, "max_tokens": 40, **sampling}
    return EngineRequest(name, MODEL, version, prompt, json.dumps(given).encode(), is_plain=True)


async def whole(answer: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in answer]


def in_one_call(engine: ServedEngine, scenario: Any) -> Any:
    """Run ``scenario`` with a shared call; Triton must then have ended that call."""

    async def bounded() -> Any:
        async with asyncio.timeout(WAIT_SECONDS):
            async with grpc.aio.insecure_channel(engine.address) as channel:
                call = SharedCall(service_pb2_grpc.GRPCInferenceServiceStub(channel), 60, 30)
                found = await scenario(call)
                await asyncio.gather(*call.tasks)
                return found

    return asyncio.run(bounded())


def test_what_leaves_together_is_what_leaves_alone(engine: ServedEngine) -> None:
    alone = [engine.ask(prompt, temperature=0, max_tokens=40) for prompt in PROMPTS]

    async def scenario(call: SharedCall) -> Any:
        asked = [
            request(f"r{round_}-{n}", prompt, stream=bool(round_ % 2))
            for round_ in range(6)
            for n, prompt in enumerate(PROMPTS)
        ]
        return await asyncio.gather(*(whole(call.generate(each)) for each in asked))

    found = in_one_call(engine, scenario)
    for index, deltas in enumerate(found):
        expected = alone[index % len(PROMPTS)]
        assert "".join(delta.text for delta in deltas) == expected.text
        assert sum(delta.token_count for delta in deltas) == expected.token_count
        assert deltas[-1].finish_reason == expected.finish_reason
        assert deltas[-1].prompt_token_count == expected.prompt_token_count
        assert deltas[-1].first_token_seconds > 0


def test_stop_strings_are_kept_to_in_a_group(engine: ServedEngine) -> None:
    text = engine.ask(PROMPTS[0], temperature=0, max_tokens=40).text
    stop = text[10:14]

    async def scenario(call: SharedCall) -> Any:
        return await whole(call.generate(request("r", PROMPTS[0], stop=[stop])))

    deltas = in_one_call(engine, scenario)
    assert "".join(delta.text for delta in deltas) == text[: text.index(stop)]
    assert deltas[-1].finish_reason == "stop"


def test_one_that_is_cancelled_ends_in_the_engine_and_the_others_go_on(
    engine: ServedEngine,
) -> None:
    async def scenario(call: SharedCall) -> Any:
        left = call.generate(request("left", PROMPTS[1], max_tokens=100, ignore_eos=True))
        await anext(left)
        staying = asyncio.create_task(whole(call.generate(request("stays", PROMPTS[0]))))
        await asyncio.sleep(0)  # it has begun
        await left.aclose()  # type: ignore[attr-defined]  # a generator
        return await staying

    # That the call ends, says that the engine has ended both.
    deltas = in_one_call(engine, scenario)
    assert deltas[-1].finish_reason


def test_refusals_are_told_apart(engine: ServedEngine) -> None:
    async def scenario(call: SharedCall) -> Any:
        good = asyncio.create_task(whole(call.generate(request("good", PROMPTS[0]))))
        with pytest.raises(InvalidArgument, match="top_p") as refused:
            await whole(call.generate(request("bad", PROMPTS[0], temperature=1, top_p=7)))
        assert refused.value.field == "top_p"
        with pytest.raises(InvalidArgument, match="group cannot"):
            await whole(call.generate(request("scored", PROMPTS[0], logprobs=1)))
        with pytest.raises(EngineFailed, match="version"):
            await whole(call.generate(request("nowhere", PROMPTS[0], version=7)))
        return await good

    assert in_one_call(engine, scenario)[-1].finish_reason


def test_an_answer_that_is_not_streamed_is_one_response(engine: ServedEngine) -> None:
    streamed = engine.ask(PROMPTS[0], temperature=0, max_tokens=60)
    found = engine.ask(PROMPTS[0], temperature=0, max_tokens=60, stream=False)
    assert found.text == streamed.text
    assert found.finish_reason == streamed.finish_reason
    assert len(found.pieces) < len(streamed.pieces) or len(streamed.pieces) == 1
    assert "stream" in engine.ask(PROMPTS[0], stream="yes").error
