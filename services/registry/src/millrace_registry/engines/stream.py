"""One request on its way through the engine, and the responses it gets.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from constraint import Constraint
from group import FINAL, Member
from sampling import Sampling
from text_stream import TextStream


@dataclass
class Delta:
    """What a stream has gathered since its last send.

    ``tokens`` is kept for the scorer only; ``logprobs`` are entries as JSON.
    """

    text: str = ""
    token_count: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    """One request on its way. Times are seconds of ``time.monotonic``.

    ``member`` is there when the request's answer leaves with those of others. ``job`` is the
    scorer's, when it has a part in the request; then the scorer alone answers. Before ``due``
    nothing but the end is sent.
    """

    sender: Any
    prompt: Any
    config: Any
    sampling: Sampling
    constraint: Constraint | None
    text: TextStream
    arrived: float
    member: Member | None = None
    admitted: float = 0.0
    first_token: float = 0.0
    due: float = 0.0
    handle: Any = None
    job: Any = None
    delta: Delta = field(default_factory=Delta)
    finish_reason: str = ""
    closed: bool = False

    @property
    def watches(self) -> bool:
        """Whether each step is to be looked at: for the first token, or for a stop string."""
        return not self.first_token or bool(self.sampling.stops)

    def is_cancelled(self) -> bool:
        """Of a request that has no group Triton is asked, which takes some 0.15 ms."""
        if self.member is not None:
            return bool(self.member.has_been_cancelled)
        return bool(self.sender.is_cancelled())


def take(stream: Stream, tokens: Sequence[int], reason: str, spelling: Sequence[bytes]) -> None:
    """Add tokens that were generated, and ``reason`` when generation ended with them."""
    # What stops a generation by itself is an end-of-text token, which spells nothing.
    spelled = [spelling[token] for token in (tokens[:-1] if reason == "stop" else tokens)]
    text = stream.text.push(b"".join(spelled))
    if stream.text.stopped:
        reason = "stop"
    elif reason:
        text += stream.text.flush()
    stream.finish_reason = reason
    stream.delta.text += text
    stream.delta.token_count += len(tokens)
    if stream.job:
        stream.delta.tokens += tokens


def respond(stream: Stream, delta: Delta, reason: str, prompt_logprobs: Sequence[str] = ()) -> None:
    """Send one response; ``reason`` is "" but for the last."""
    outputs = outputs_of(stream, delta, reason, prompt_logprobs)
    tensors = [tensor(name, value) for name, value in outputs.items()]
    stream.sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if reason else 0)


def outputs_of(
    stream: Stream, delta: Delta, reason: str, prompt_logprobs: Sequence[str] = ()
) -> dict[str, str | int]:
    """What a response says, by the outputs' names."""
    outputs: dict[str, str | int] = {
        "text": delta.text,
        "token_count": delta.token_count,
        "finish_reason": reason,
    }
    if stream.sampling.logprobs is not None:
        outputs["logprobs"] = f"[{','.join(delta.logprobs)}]"
    if reason:
        outputs["prompt_token_count"] = stream.prompt.size
        outputs["timing"] = timing(stream)
        if prompt_logprobs:
            outputs["prompt_logprobs"] = f"[{','.join(prompt_logprobs)}]"
    return outputs


def timing(stream: Stream) -> str:
    moments = {
        "queue_seconds": stream.admitted,
        "first_token_seconds": stream.first_token,
        "total_seconds": time.monotonic(),
    }
    return json.dumps({name: round(at - stream.arrived, 6) for name, at in moments.items()})


def tensor(name: str, value: str | int) -> Any:
    if isinstance(value, str):
        return pb_utils.Tensor(name, np.array([value.encode()], dtype=np.object_))
    return pb_utils.Tensor(name, np.array([value], dtype=np.int32))
