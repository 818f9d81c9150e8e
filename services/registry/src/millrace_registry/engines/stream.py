"""One request on its way through the engine, and the responses it gets.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from sampling import Sampling
from text_stream import TextStream


@dataclass
class Delta:
    """What a stream has gathered since its last send."""

    text: str = ""
    token_count: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    """One request on its way. Times are seconds of ``time.monotonic``."""

    sender: Any
    prompt: Any
    config: Any
    sampling: Sampling
    text: TextStream
    arrived: float
    admitted: float = 0.0
    first_token: float = 0.0
    checked: float = 0.0
    handle: Any = None
    delta: Delta = field(default_factory=Delta)
    finish_reason: str = ""
    closed: bool = False


def respond(stream: Stream) -> None:
    delta, reason = stream.delta, stream.finish_reason
    outputs: dict[str, str | int] = {
        "text": delta.text,
        "token_count": delta.token_count,
        "finish_reason": reason,
    }
    if stream.sampling.logprobs:
        outputs["logprobs"] = json.dumps(delta.logprobs)
    if reason:
        outputs["prompt_token_count"] = stream.prompt.size
        outputs["timing"] = timing(stream)
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if reason else 0
    tensors = [tensor(name, value) for name, value in outputs.items()]
    stream.sender.send(pb_utils.InferenceResponse(tensors), flags=flags)


def fail(sender: Any, code: str, message: str) -> None:
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    response = pb_utils.InferenceResponse(error=error)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def timing(stream: Stream) -> str:
    moments = {
        "queue_seconds": stream.admitted,
        "first_token_seconds": stream.first_token,
        "total_seconds": time.monotonic(),
    }
    return json.dumps({name: round(at - stream.arrived, 6) for name, at in moments.items()})


def logprob(piece: bytes, value: float) -> dict[str, Any]:
    return {"token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}


def tensor(name: str, value: str | int) -> Any:
    if isinstance(value, str):
        return pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_))
    return pb_utils.Tensor(name, np.array([value], dtype=np.int32))
