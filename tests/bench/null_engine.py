"""A Triton that generates nothing: it answers each request at once, with ready-made messages.

python -m tests.bench.null_engine PORT
"""

import json
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

TOKENS = 16
_PROMPT_TOKENS = 8
_WORD = " word"


class NullEngine(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Sixteen tokens: a message each, or all in one when they are not streamed."""

    def __init__(self) -> None:
        self._streamed = [("", 1)] * (TOKENS - 1) + [("stop", 1)]
        self._whole = [("stop", TOKENS)]

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            whole = b'"stream":false' in b"".join(request.raw_input_contents)
            pieces = self._whole if whole else self._streamed
            make = _parcels if "group" in request.parameters else _responses
            for message in make(request.id, pieces):
                yield message


def _responses(identifier: str, pieces: list[tuple[str, int]]) -> Iterator[Any]:
    for finish_reason, tokens in pieces:
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
        yield message


def _parcels(identifier: str, pieces: list[tuple[str, int]]) -> Iterator[Any]:
    """As a member of a group is answered (``millrace_registry/engines/group.py``)."""
    for finish_reason, tokens in pieces:
        parcel: dict[str, Any] = {
            "id": identifier,
            "text": _WORD * tokens,
            "token_count": tokens,
            "finish_reason": finish_reason,
        }
        if finish_reason:
            parcel |= {"prompt_token_count": _PROMPT_TOKENS, "timing": "{}"}
        message = service_pb2.ModelStreamInferResponse()
        message.infer_response.outputs.add(name="batch", datatype="BYTES", shape=[1])
        message.infer_response.raw_output_contents.append(_element(json.dumps([parcel])))
        yield message


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
