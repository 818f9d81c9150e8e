"""Generation on Triton: one decoupled request over one KServe ``ModelStreamInfer`` stream.

The tensors are those of the engine (``millrace_registry/engines/openvino_genai.py``); the
protocol is KServe's with Triton's extensions:
https://github.com/triton-inference-server/common/blob/r24.10/protobuf/grpc_service.proto

    EngineFailed   the engine could not answer; another endpoint, or a later try, may
"""

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypedDict

import grpc
import grpc.aio
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc

from millrace_runtime.errors import InvalidArgument, Unavailable

_LENGTH = struct.Struct("<I")  # what stands before each element of a BYTES tensor
_COUNT = struct.Struct("<i")
_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", 16 * 2**20),
)
# Makes Triton end a stream with the engine's own status code, not with text alone.
_STATUS_CODES = ("triton_grpc_error", "true")
_MISTAKES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# Sampling parameters by the names that clients know, for messages of the engine about them.
_PARAMETER = re.compile(
    r"\b(max_tokens|temperature|top_p|seed|stop|presence_penalty|frequency_penalty|logit_bias"
    r"|response_format|logprobs|prompt_logprobs)\b"
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
        logprobs: one entry a token, when asked for.
        prompt_logprobs: one entry a token of the prompt, in the last one, when asked for.
    """

    text: str = ""
    token_count: int = 0
    finish_reason: str = ""
    prompt_token_count: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


def joined(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what ``deltas`` say, in their order."""
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_count=sum(delta.token_count for delta in deltas),
        finish_reason="".join(delta.finish_reason for delta in deltas),
        prompt_token_count=sum(delta.prompt_token_count for delta in deltas),
        logprobs=list(chain.from_iterable(delta.logprobs for delta in deltas)),
        prompt_logprobs=list(chain.from_iterable(delta.prompt_logprobs for delta in deltas)),
    )


@dataclass(frozen=True)
class EngineRequest:
    """One generation.

    Attributes:
        prompt: rendered text, or token ids.
        sampling: the engine's JSON object, encoded.
        traceparent: goes along as metadata.
    """

    id: str
    triton_model: str
    version: int
    prompt: str | Sequence[int]
    sampling: bytes
    traceparent: str = ""


class Engine(Protocol):
    """What generates; ``TritonEngine`` is one."""

    def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        """The answer as it comes. Closing the iterator stops the engine.

        Raises:
            InvalidArgument: the engine refuses the request.
            EngineFailed: it cannot answer it.
            Unavailable: it was broken off from our side.
        """
        ...


class TritonEngine:
    """Triton's gRPC endpoints, a channel each, opened when first used."""

    def __init__(self, deadline_seconds: float, silence_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._silence_seconds = silence_seconds
        self._stubs: dict[str, Any] = {}
        self._channels: list[grpc.aio.Channel] = []
        self._watches: set[_Watch] = set()

    async def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        metadata = [_STATUS_CODES]
        if request.traceparent:
            metadata.append(("traceparent", request.traceparent))
        call = self._stub(endpoint).ModelStreamInfer(
            metadata=metadata, timeout=self._deadline_seconds
        )
        watch = _Watch(call, self._silence_seconds)
        self._watches.add(watch)
        try:
            await call.write(_message(request))
            await call.done_writing()
            async for response in call:
                watch.heard()
                if response.error_message:
                    raise EngineFailed(response.error_message)
                yield _delta(response.infer_response)
            watch.check()
        except grpc.RpcError as error:
            raise _meaning(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # else it is we who are cancelled
                watch.check()
            raise
        finally:
            self._watches.discard(watch)
            watch.stop()
            call.cancel()  # does nothing to a call that has ended

    def break_off(self, reason: Unavailable) -> None:
        """End every generation in progress with ``reason``; the engine is not to blame."""
        for watch in self._watches:
            watch.give_up(reason)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    def _stub(self, endpoint: str) -> Any:
        if endpoint not in self._stubs:
            channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
            self._channels.append(channel)
            self._stubs[endpoint] = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stubs[endpoint]


class _Watch:
    """Cancels a call that falls silent: a killed engine process leaves its streams hanging.

    One timer a stream; a message only notes its time.
    """

    def __init__(self, call: Any, silence_seconds: float) -> None:
        self._call = call
        self._silence_seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        self._last_seconds = self._loop.time()
        self._reason: Exception | None = None
        self._timer = self._loop.call_later(silence_seconds, self._look)

    def heard(self) -> None:
        self._last_seconds = self._loop.time()

    def check(self) -> None:
        """Raise the reason for which the call was given up, if it was."""
        if self._reason is not None:
            raise self._reason

    def give_up(self, reason: Exception) -> None:
        self._reason = reason
        self._call.cancel()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        due_seconds = self._last_seconds + self._silence_seconds
        if self._loop.time() < due_seconds:
            self._timer = self._loop.call_at(due_seconds, self._look)
        else:
            self.give_up(EngineFailed(f"the engine was silent for {self._silence_seconds:g} s"))


def _message(request: EngineRequest) -> Any:
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


def _delta(response: Any) -> Delta:
    delta = Delta()
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
        elif name == "logprobs":
            delta.logprobs = orjson.loads(raw[4:])
        elif name == "prompt_logprobs":
            delta.prompt_logprobs = orjson.loads(raw[4:])
    return delta


def _meaning(error: grpc.RpcError) -> Exception:
    code, details = error.code(), error.details() or ""
    if code not in _MISTAKES:
        return EngineFailed(f"{code.name}: {details}")
    if "context" in details:
        return InvalidArgument(details, reason="CONTEXT_LENGTH_EXCEEDED", field="messages")
    found = _PARAMETER.search(details)
    name = found[1] if found else ""
    return InvalidArgument(details, field=_CLIENTS_NAME.get(name, name))
