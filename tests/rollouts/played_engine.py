"""Triton's gRPC interface, played, with versions that answer as was planned.

    python -m tests.rollouts.played_engine PORT REPOSITORY PLANS LOG

It loads what REPOSITORY lists, answers as PLANS say (``behaviour.py``), and writes a line to LOG
for each request that has ended: what was seen, by the one who cannot be mistaken.
"""

import asyncio
import json
import math
import random
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.rollouts import behaviour
from tests.rollouts.behaviour import Behaviour

_FIRST_SECONDS = 0.01
_TOKEN_SECONDS = 0.001
_SPREAD = 0.3  # of the logarithm of a time
_WORDS = (" alpha", " beta", " gamma", " delta")
_NOISE = 0.02  # of a score, by prompt


class PlayedEngine(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, repository: Path, plans: Path, log: TextIO) -> None:
        self._repository = repository
        self._plans = plans
        self._log = log
        self._loaded: dict[tuple[str, int], Behaviour] = {}
        self._chance = random.Random(0)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = pb.RepositoryIndexResponse()
        for model, version in self._loaded:
            response.models.add(name=model, version=str(version), state="READY")
        return response

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        name = request.model_name
        listed = _listed(self._repository / name / "config.pbtxt")
        self._forget(name, listed)
        for version in listed:
            self._loaded[name, version] = behaviour.read(self._plans, name, version)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        self._forget(request.model_name, ())
        return pb.RepositoryModelUnloadResponse()

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            key = (request.model_name, int(request.model_version))
            how = self._loaded.get(key)
            if how is None or self._chance.random() < how.error_rate:
                self._note(key, is_whole=False)
                yield pb.ModelStreamInferResponse(error_message="INTERNAL: the engine broke")
                continue
            inputs = dict(
                zip((i.name for i in request.inputs), request.raw_input_contents, strict=True)
            )
            sampling = json.loads(inputs["sampling"][4:])
            if sampling.get("prompt_logprobs"):
                yield _scored(request.id, how, inputs)
            else:
                async for response in self._generated(request.id, how, sampling):
                    yield response
                self._note(key, is_whole=True)

    async def _generated(
        self, identifier: str, how: Behaviour, sampling: dict[str, Any]
    ) -> AsyncIterator[Any]:
        began = time.perf_counter()
        await self._work(_FIRST_SECONDS * how.slowness)
        first = time.perf_counter() - began
        # The registry's question whether it answers at all is answered by every version.
        tokens = min(sampling.get("max_tokens", 16), max(how.tokens, 1))
        if sampling.get("stream", True):
            for index in range(tokens - 1):
                yield _response(identifier, [_WORDS[index % 4]], "", {})
                await self._work(_TOKEN_SECONDS * how.slowness)
            words = _WORDS[-1:]
        else:
            await self._work(_TOKEN_SECONDS * how.slowness * (tokens - 1))
            words = tuple(_WORDS[index % 4] for index in range(tokens))
        total = time.perf_counter() - began
        timing = {"first_token_seconds": first, "total_seconds": total}
        yield _response(identifier, words if how.tokens else [""] * len(words), "stop", timing)

    async def _work(self, seconds: float) -> None:
        await asyncio.sleep(seconds * math.exp(self._chance.gauss(0, _SPREAD)))

    def _note(self, key: tuple[str, int], is_whole: bool) -> None:
        self._log.write(f"{time.time():.3f} {key[0]} {key[1]} {int(is_whole)}\n")
        self._log.flush()

    def _forget(self, model: str, kept: Sequence[int]) -> None:
        for key in list(self._loaded):
            if key[0] == model and key[1] not in kept:
                del self._loaded[key]


def _scored(identifier: str, how: Behaviour, inputs: dict[str, bytes]) -> Any:
    """Log-probabilities of a prompt: the same for the same prompt, but for the version's."""
    ids = struct.unpack(f"<{len(inputs['input_ids']) // 8}q", inputs["input_ids"])
    noise = random.Random(repr(ids)).gauss(0, _NOISE)
    score = math.nan if how.score is None else how.score + noise
    entries = [
        {"id": each, "token": "", "logprob": score if index else None, "bytes": [], "top": []}
        for index, each in enumerate(ids)
    ]
    made = pb.ModelStreamInferResponse()
    made.infer_response.id = identifier
    _add_text(made.infer_response, "prompt_logprobs", json.dumps(entries))
    return made


def _response(
    identifier: str, words: Sequence[str], finish_reason: str, timing: dict[str, float]
) -> Any:
    made = pb.ModelStreamInferResponse()
    response = made.infer_response
    response.id = identifier
    _add_text(response, "text", "".join(words))
    _add_text(response, "finish_reason", finish_reason)
    _add_number(response, "token_count", len(words))
    if finish_reason:
        _add_number(response, "prompt_token_count", 4)
        _add_text(response, "timing", json.dumps(timing))
    return made


def _add_text(response: Any, name: str, text: str) -> None:
    response.outputs.add(name=name, datatype="BYTES", shape=[1])
    content = text.encode()
    response.raw_output_contents.append(struct.pack("<I", len(content)) + content)


def _add_number(response: Any, name: str, number: int) -> None:
    response.outputs.add(name=name, datatype="INT32", shape=[1])
    response.raw_output_contents.append(struct.pack("<i", number))


def _listed(config: Path) -> list[int]:
    """The versions that a model's configuration asks for."""
    lines = [line.strip() for line in config.read_text().splitlines()]
    return [int(line.split()[1]) for line in lines if line.startswith("versions:")]


async def _serve(port: int, repository: Path, plans: Path, log: TextIO) -> None:
    server = grpc.aio.server()
    engine = PlayedEngine(repository, plans, log)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(engine, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    with Path(sys.argv[4]).open("a") as opened:
        uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), opened))
