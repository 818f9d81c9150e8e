"""What is said to Triton's text engines, and what they answer.

``triton_engine.py`` asks them. The tensors are those of
``millrace_registry/engines/openvino_genai.py``, the protocol is KServe's with Triton's extensions:
https://github.com/triton-inference-server/common/blob/r24.10/protobuf/grpc_service.proto

    EngineFailed   the engine could not answer; another endpoint, or a later try, may
"""

import re
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypedDict

import grpc
import orjson
from tritonclient.grpc import service_pb2

from millrace_runtime.errors import InvalidArgument

_LENGTH = struct.Struct("<I")  # what stands before each element of a BYTES tensor
_COUNT = struct.Struct("<i")
_MISTAKES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
_MISTAKE = "INVALID_ARG: "
# Sampling parameters by the names that clients know, for messages of the engine about them.
_PARAMETER = re.compile(
    r"\b(max_tokens|temperature|top_p|seed|stop|presence_penalty|frequency_penalty|logit_bias"
    r"|response_format|logprobs|prompt_logprobs|dimensions)\b"
)
_CLIENTS_NAME = {"prompt_logprobs": "echo"}


class EngineFailed(Exception):
    """The engine did not answer, or broke off; asking elsewhere or later may succeed."""


class Alternative(TypedDict):
    """A token that might have stood somewhere. ``logprob`` is natural, None for minus infinity."""

    id: int
    token: str
    logprob: float | None
    bytes: list[int]


class TokenLogprob(Alternative):
    """The token that stands there, and the likeliest ones, best first.

    ``logprob`` of a prompt's first token is None. ``bytes`` is empty for a special token.
    """

    top: list[Alternative]


@dataclass(slots=True)
class Delta:
    """What one message of the engine added.

    Attributes:
        text: whole characters.
        token_count: tokens that it took, an end-of-text token included.
        finish_reason: "stop" or "length" in the last one, empty before.
        prompt_token_count: in the last one, 0 before.
        first_token_seconds: in the last one: when the first token was there, from the request's
            arrival at the engine.
        total_seconds: in the last one: the same of the last token.
        logprobs: one entry a token, when asked for.
        prompt_logprobs: one entry a token of the prompt, in the last one, when asked for.
        embeddings: vectors by the index of their input, float32 as bytes, when asked for.
    """

    text: str = ""
    token_count: int = 0
    finish_reason: str = ""
    prompt_token_count: int = 0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    embeddings: dict[int, bytes] = field(default_factory=dict)


def joined(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what ``deltas`` say, in their order."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_count=sum(delta.token_count for delta in deltas),
        finish_reason="".join(delta.finish_reason for delta in deltas),
        prompt_token_count=sum(delta.prompt_token_count for delta in deltas),
        first_token_seconds=sum(delta.first_token_seconds for delta in deltas),
        total_seconds=sum(delta.total_seconds for delta in deltas),
        logprobs=list(chain.from_iterable(delta.logprobs for delta in deltas)),
        prompt_logprobs=list(chain.from_iterable(delta.prompt_logprobs for delta in deltas)),
        embeddings=dict(chain.from_iterable(delta.embeddings.items() for delta in deltas)),
    )


@dataclass(frozen=True)
class EngineRequest:
    """One generation.

    Attributes:
        prompt: rendered text, or token ids.
        sampling: the engine's JSON object, encoded.
        traceparent: goes along as metadata.
        is_plain: it asks for text alone, so that its answer may leave the engine with others.
    """

    id: str
    triton_model: str
    version: int
    prompt: str | Sequence[int]
    sampling: bytes
    traceparent: str = ""
    is_plain: bool = False


class Engine(Protocol):
    """What generates; ``triton_engine.TritonEngine`` is one."""

    def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        """The answer as it comes. Closing the iterator stops the engine.

        Raises:
            InvalidArgument: the engine refuses the request.
            EngineFailed: it cannot answer it.
            Unavailable: it was broken off from our side.
        """
        ...


def message_of(request: EngineRequest) -> Any:
    """Its ModelInferRequest."""
    message = service_pb2.ModelInferRequest(
        model_name=request.triton_model, model_version=str(request.version), id=request.id
    )
    if isinstance(request.prompt, str):
        message.inputs.add(name="prompt", datatype="BYTES", shape=[1])
        message.raw_input_contents.append(_element(request.prompt.encode()))
    else:
        count = len(request.prompt)
        message.inputs.add(name="input_ids", datatype="INT64", shape=[count])
        message.raw_input_contents.append(struct.pack(f"<{count}q", *request.prompt))
    message.inputs.add(name="sampling", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(_element(request.sampling))
    return message


def _element(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


def delta_of(response: Any) -> Delta:
    """What a ModelInferResponse adds."""
    delta = Delta()
    inputs: Sequence[int] = ()
    vectors = b""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        name = output.name
        if name == "text":
            delta.text = raw[4:].decode(errors="replace")
        elif name == "token_count":
            delta.token_count = _COUNT.unpack(raw)[0]
        elif name == "finish_reason":
            delta.finish_reason = raw[4:].decode()
        elif name == "prompt_token_count":
            delta.prompt_token_count = _COUNT.unpack(raw)[0]
        elif name == "timing":
            _add_timing(delta, raw[4:])
        elif name == "logprobs":
            delta.logprobs = orjson.loads(raw[4:])
        elif name == "prompt_logprobs":
            delta.prompt_logprobs = orjson.loads(raw[4:])
        elif name == "embedding":
            vectors = raw
        elif name == "embedding_index":
            inputs = struct.unpack(f"<{len(raw) // 4}i", raw)
    if inputs:
        delta.embeddings = dict(zip(inputs, _rows(vectors, len(inputs)), strict=True))
    return delta


def _rows(raw: bytes, count: int) -> list[bytes]:
    """The ``count`` rows of a tensor."""
    size = len(raw) // count
    return [raw[begin : begin + size] for begin in range(0, len(raw), size)]


def parcels_of(response: Any) -> list[dict[str, Any]] | None:
    """The answers to several requests that came as one; None when it is an answer to one."""
    if len(response.outputs) == 1 and response.outputs[0].name == "batch":
        parcels: list[dict[str, Any]] = orjson.loads(response.raw_output_contents[0][4:])
        return parcels
    return None


def delta_of_parcel(parcel: dict[str, Any]) -> Delta:
    """What one of ``parcels_of`` adds."""
    delta = Delta(parcel["text"], parcel["token_count"], parcel["finish_reason"])
    if delta.finish_reason:
        delta.prompt_token_count = parcel["prompt_token_count"]
        _add_timing(delta, parcel["timing"])
    return delta


def _add_timing(delta: Delta, timing: bytes | str) -> None:
    moments = orjson.loads(timing)
    delta.first_token_seconds = float(moments.get("first_token_seconds", 0.0))
    delta.total_seconds = float(moments.get("total_seconds", 0.0))


def meaning(error: grpc.RpcError) -> Exception:
    """What the end of a call says: that the request was wrong, or that the engine failed."""
    code, details = error.code(), error.details() or ""
    return mistake(details) if code in _MISTAKES else EngineFailed(f"{code.name}: {details}")


def meaning_of_text(text: str) -> Exception:
    """As ``meaning``, for the error of one of several requests, which begins with its code."""
    return mistake(text.removeprefix(_MISTAKE)) if text.startswith(_MISTAKE) else EngineFailed(text)


def mistake(details: str) -> InvalidArgument:
    """The engine refuses a request: in the names that clients know."""
    if "context" in details:
        return InvalidArgument(details, reason="CONTEXT_LENGTH_EXCEEDED", field="messages")
    found = _PARAMETER.search(details)
    name = found[1] if found else ""
    return InvalidArgument(details, field=_CLIENTS_NAME.get(name, name))
