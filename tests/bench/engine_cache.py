"""Fills an engine's KV cache, so that its memory is what it will be for good.

The cache is set aside at start, and its pages become memory when they are first used: until then
a process that leaks nothing grows with every token.
"""

import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.bench import processes

_PROMPT_TOKENS = 1000
_VOCABULARY = range(3, 4096)
_PROMPTS, _AT_ONCE = 48, 8
_MOST_ROUNDS = 40
_FULL_MEBIBYTES = 4.0
_PATIENCE_SECONDS = 60.0
_MEBIBYTE = 1 << 20


def fill(endpoint: str, say: Callable[[str], None]) -> None:
    """Ask for one token after ever new prompts until Triton's memory rises no more.

    Raises:
        RuntimeError: it still rises when every engine's cache should be full.
    """
    draw = random.Random(0)
    before = 0.0
    with grpc.insecure_channel(endpoint) as channel, ThreadPoolExecutor(_AT_ONCE) as pool:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(_MOST_ROUNDS):
            prompts = [draw.choices(_VOCABULARY, k=_PROMPT_TOKENS) for _ in range(_PROMPTS)]
            list(pool.map(lambda prompt: _ask(stub, prompt), prompts))
            after = family_mebibytes(processes.triton_pid())
            if after - before < _FULL_MEBIBYTES:
                say(f"the engine's cache is full: {after:,.0f} MiB")
                return
            before = after
    raise RuntimeError(f"Triton has {before:,.0f} MiB, and still grows")


def family_mebibytes(pid: int) -> float:
    """Resident memory of a process and its children."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return sum(float(member.memory_info().rss) for member in family) / _MEBIBYTE


def one_token(prompt: list[int]) -> Any:
    """A request for one token."""
    request = service_pb2.ModelInferRequest(model_name=processes.TRITON_MODEL)
    request.inputs.add(name="input_ids", datatype="INT64", shape=[len(prompt)])
    request.raw_input_contents.append(struct.pack(f"<{len(prompt)}q", *prompt))
    sampling = b'{"max_tokens": 1}'
    request.inputs.add(name="sampling", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(sampling)) + sampling)
    return request


def _ask(stub: Any, prompt: list[int]) -> None:
    (answer,) = stub.ModelStreamInfer(iter([one_token(prompt)]), timeout=_PATIENCE_SECONDS)
    assert not answer.error_message, answer.error_message
