"""A Triton that generates nothing: it answers each request at once, with ready-made messages.

python -m tests.bench.null_engine PORT
"""

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

TOKENS = 16
_PROMPT_TOKENS = 8
_WORD = " word"


class NullEngine(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Sixteen tokens: a message each, or all in one when they are not streamed.

    The members of a group get theirs together, as the engine's do
    (``millrace_registry/engines/group.py``): one message with the next token of each.
    """

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if "group" in request.parameters:
                async for message in _Group().answers(request, requests):
                    yield message
            else:
                for finish_reason, tokens in _pieces(request):
                    yield _response(request.id, finish_reason, tokens)


class _Group:
    def __init__(self) -> None:
        self._left: dict[str, Iterator[tuple[str, int]]] = {}
        self._came = asyncio.Event()
        self._has_all = False

    async def answers(self, first: Any, others: Any) -> AsyncIterator[Any]:
        self._left[first.id] = iter(_pieces(first))
        taking = asyncio.create_task(self._take(others))
        while self._left or not self._has_all:
            if not self._left:
                self._came.clear()
                await self._came.wait()
                continue
            parcels = [_parcel(each, *next(pieces)) for each, pieces in self._left.items()]
            for parcel in parcels:
                if parcel["finish_reason"]:
                    del self._left[parcel["id"]]
            yield _batch(parcels)
        await taking

    async def _take(self, requests: Any) -> None:
        async for request in requests:
            self._left[request.id] = iter(_pieces(request))
            self._came.set()
        self._has_all = True
        self._came.set()


def _pieces(request: Any) -> Sequence[tuple[str, int]]:
    """Finish reasons, and how many tokens come with them."""
    is_whole = b'"stream":false' in b"".join(request.raw_input_contents)
    return [("stop", TOKENS)] if is_whole else [("", 1)] * (TOKENS - 1) + [("stop", 1)]


def _response(identifier: str, finish_reason: str, tokens: int) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.id = identifier
    for name, text in (("text", _WORD * tokens), ("finish_reason", finish_reason)):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(_element(text))
    for name, count in (("token_count", tokens), ("prompt_token_count", _PROMPT_TOKENS)):
        if name == "token_count" or finish_reason:
            response.outputs.add(name=name, datatype="INT32", shape=[1])
            response.raw_output_contents.append(struct.pack("<i", count))
    return message


def _parcel(identifier: str, finish_reason: str, tokens: int) -> dict[str, Any]:
    end = {"prompt_token_count": _PROMPT_TOKENS, "timing": "{}"} if finish_reason else {}
    text = _WORD * tokens
    return {
        "id": identifier,
        "text": text,
        "token_count": tokens,
        "finish_reason": finish_reason,
        **end,
    }


def _batch(parcels: Sequence[dict[str, Any]]) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="batch", datatype="BYTES", shape=[1])
    message.infer_response.raw_output_contents.append(_element(json.dumps(parcels)))
    return message


def _element(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<I", len(content)) + content


async def serve(port: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(NullEngine(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
