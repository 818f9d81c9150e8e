"""Triton's side of the Open Inference Protocol: one call for one request, tensors as they are.

The protocol is KServe's with Triton's extensions:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
https://github.com/triton-inference-server/common/blob/r24.10/protobuf/grpc_service.proto
Names in requests and answers are translated: clients know ``demo``, Triton ``default.demo``.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from millrace_gateway.deadline import DeadlineExceeded
from millrace_gateway.placement import Place
from millrace_gateway.triton import EngineFailed
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", 64 * 2**20),
)
# Makes Triton end a stream with the engine's own status code, not with text alone.
_STATUS_CODES = ("triton_grpc_error", "true")
_MISTAKES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
_DESCRIPTION_SECONDS = 10.0
_RESTRICTED = "This protocol is restricted"  # Triton's words where it asks for the registry's key
_END: object = grpc.aio.EOF  # type: ignore[attr-defined]  # which the stubs lack


@dataclass(frozen=True)
class Terms:
    """How a request is carried out.

    Attributes:
        is_stream: over ``ModelStreamInfer``, which decoupled models need.
        timeout_seconds: what the client's deadline leaves; None without one.
    """

    is_stream: bool
    timeout_seconds: float | None = None
    traceparent: str = ""


class InferenceEngine(Protocol):
    """What infers; ``TritonInference`` is one. ``EngineFailed`` means that it could not."""

    def answer(self, place: Place, request: Any, terms: Terms) -> AsyncGenerator[Any, None]:
        """The answer's ModelInferResponses as they come. Closing the iterator stops the engine.

        Raises:
            InvalidArgument: the engine refuses the request.
            FailedPrecondition: the model answers streams alone.
            DeadlineExceeded: the client's deadline has passed.
            EngineFailed: it cannot answer it.
        """
        ...

    async def metadata(self, place: Place) -> Any:
        """The version's ModelMetadataResponse."""
        ...

    async def config(self, place: Place) -> Any:
        """The version's ModelConfigResponse."""
        ...

    async def statistics(self, place: Place) -> Any:
        """The version's ModelStatisticsResponse, of this endpoint."""
        ...


class TritonInference:
    """Triton's gRPC endpoints, a channel each, opened when first used.

    Args:
        deadline_seconds: longest that one request may take.
        silence_seconds: silence of a stream after which its engine is given up for dead.
    """

    def __init__(self, deadline_seconds: float, silence_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._silence_seconds = silence_seconds
        self._stubs: dict[str, Any] = {}
        self._channels: list[grpc.aio.Channel] = []

    async def answer(self, place: Place, request: Any, terms: Terms) -> AsyncGenerator[Any, None]:
        request.model_name = place.route.triton_model
        request.model_version = str(place.version)
        begin = self._stream if terms.is_stream else self._unary
        try:
            async with aclosing(begin(place, request, terms)) as responses:
                async for response in responses:
                    response.model_name = place.route.model
                    response.model_version = str(place.version)
                    yield response
        except grpc.RpcError as error:
            raise _meaning(error, place, self._is_clients(terms)) from error

    async def metadata(self, place: Place) -> Any:
        request = service_pb2.ModelMetadataRequest(
            name=place.route.triton_model, version=str(place.version)
        )
        response = await self._described(place, "ModelMetadata", request)
        response.name = place.route.model
        return response

    async def config(self, place: Place) -> Any:
        request = service_pb2.ModelConfigRequest(
            name=place.route.triton_model, version=str(place.version)
        )
        response = await self._described(place, "ModelConfig", request)
        response.config.name = place.route.model
        return response

    async def statistics(self, place: Place) -> Any:
        request = service_pb2.ModelStatisticsRequest(
            name=place.route.triton_model, version=str(place.version)
        )
        response = await self._described(place, "ModelStatistics", request)
        for entry in response.model_stats:
            entry.name = place.route.model
        return response

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def _unary(self, place: Place, request: Any, terms: Terms) -> AsyncGenerator[Any, None]:
        yield await self._stub(place).ModelInfer(
            request, metadata=_metadata(terms), timeout=self._timeout_seconds(terms)
        )

    async def _stream(self, place: Place, request: Any, terms: Terms) -> AsyncGenerator[Any, None]:
        call = self._stub(place).ModelStreamInfer(
            metadata=[_STATUS_CODES, *_metadata(terms)], timeout=self._timeout_seconds(terms)
        )
        try:
            await call.write(request)
            await call.done_writing()
            while (message := await self._read(call)) is not _END:
                if message.error_message:
                    raise EngineFailed(_public(message.error_message, place))
                yield message.infer_response
        finally:
            call.cancel()  # does nothing to a call that has ended

    async def _read(self, call: Any) -> Any:
        """The next message; a killed engine process leaves its streams hanging."""
        try:
            async with asyncio.timeout(self._silence_seconds):
                return await call.read()
        except TimeoutError as error:
            raise EngineFailed(f"the engine was silent for {self._silence_seconds:g} s") from error

    async def _described(self, place: Place, method: str, request: Any) -> Any:
        try:
            return await getattr(self._stub(place), method)(request, timeout=_DESCRIPTION_SECONDS)
        except grpc.RpcError as error:
            raise _meaning(error, place) from error

    def _timeout_seconds(self, terms: Terms) -> float:
        if terms.timeout_seconds is None:
            return self._deadline_seconds
        return min(terms.timeout_seconds, self._deadline_seconds)

    def _is_clients(self, terms: Terms) -> bool:
        """Whether it is the client's deadline that comes first."""
        return self._timeout_seconds(terms) < self._deadline_seconds

    def _stub(self, place: Place) -> Any:
        endpoint = place.choice.endpoint
        if endpoint not in self._stubs:
            channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
            self._channels.append(channel)
            self._stubs[endpoint] = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stubs[endpoint]


def _metadata(terms: Terms) -> list[tuple[str, str]]:
    return [("traceparent", terms.traceparent)] if terms.traceparent else []


def _meaning(error: grpc.RpcError, place: Place, deadline_is_clients: bool = False) -> Exception:
    code, details = error.code(), _public(error.details() or "", place)
    if code in _MISTAKES:
        return InvalidArgument(details)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return FailedPrecondition(
            f"model {place.route.model!r} answers in parts: ask it over ModelStreamInfer (gRPC), "
            "or by generate or generate_stream (REST)",
            reason="MODEL_IS_DECOUPLED",
            field="model",
        )
    if code is grpc.StatusCode.UNAVAILABLE and _RESTRICTED in details:
        return FailedPrecondition("this is not open to clients here", reason="NOT_OFFERED")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline_is_clients:
        return DeadlineExceeded()
    return EngineFailed(f"{code.name}: {details}")


def _public(text: str, place: Place) -> str:
    """What Triton says, in the names that the client knows."""
    return text.replace(place.route.triton_model, place.route.model)
