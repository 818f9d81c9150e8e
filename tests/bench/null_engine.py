"""A Triton that generates nothing: it answers each request at once, with ready-made messages.

python -m tests.bench.null_engine PORT
"""

import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

TOKENS = 16


class NullEngine(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Sixteen tokens, a message each."""

    def __init__(self) -> None:
        self._answers = [_answer("", 1)] * (TOKENS - 1) + [_answer("stop", 1)]

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            for answer in self._answers:
                answer.infer_response.id = request.id
                yield answer


def _answer(finish_reason: str, tokens: int) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    for name, text in (("text", " word"), ("finish_reason", finish_reason)):
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(struct.pack("<I", len(text)) + text.encode())
    for name, count in (("token_count", tokens), ("prompt_token_count", 8)):
        if name == "token_count" or finish_reason:
            response.outputs.add(name=name, datatype="INT32", shape=[1])
            response.raw_output_contents.append(struct.pack("<i", count))
    return message


async def serve(port: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(NullEngine(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
