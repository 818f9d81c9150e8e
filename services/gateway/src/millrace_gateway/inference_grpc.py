"""``inference.GRPCInferenceService``: the Open Inference Protocol over gRPC, behind keys.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md
with Triton's streams, statistics and (read only) configuration. What controls the server is not
offered: the registry alone may do that.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

from millrace_gateway.app import KeyRing, bearer
from millrace_gateway.deadline import moment_after
from millrace_gateway.domain import Principal
from millrace_gateway.edge import restarting
from millrace_gateway.inference import EXTENSIONS, Asked, Inference, check_request, reference
from millrace_gateway.placement import Place
from millrace_runtime.errors import MillraceError, NotFound, Unavailable
from millrace_runtime.rich_status import to_status

LOG = logging.getLogger(__name__)

_REFUSAL = (
    "models are loaded and unloaded by deployments alone; shared memory, tracing and logging "
    "cannot be set by clients"
)
# With this a client asks that a failure ends its stream with a status of its own.
_STATUS_CODES = "triton_grpc_error"
# Responses that wait for a client that reads slowly; engines then wait as well.
_WAITING_RESPONSES = 16
# Requests of one stream that are not answered yet; what a client sends beyond them waits.
_MOST_UNANSWERED = 256

Answer = Callable[[Any], AsyncGenerator[Any, None]]
# A unary method that is told who calls.
_Method = Callable[["InferenceServicer", Principal, Any, Any], Awaitable[Any]]


def _guarded(method: _Method) -> Any:
    """Ask for the key first, and answer errors with their status."""

    @functools.wraps(method)
    async def handle(self: "InferenceServicer", request: Any, context: Any) -> Any:
        try:
            return await method(self, await self.authenticate(context), request, context)
        except MillraceError as error:
            return await _abort(context, error)

    return handle


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Names are the gateway's own: ``demo``, or ``demo@champion``; versions its numbers."""

    def __init__(
        self, inference: Inference, key_ring: KeyRing, draining: asyncio.Event, version: str
    ) -> None:
        self._inference = inference
        self._key_ring = key_ring
        self._draining = draining
        self._version = version

    async def authenticate(self, context: Any) -> Principal:
        """Who calls.

        Raises:
            Unauthenticated: the key is missing, unknown or revoked.
        """
        metadata = dict(context.invocation_metadata() or ())
        return await self._key_ring.authenticate(bearer(metadata.get("authorization", "")))

    @_guarded
    async def ServerLive(self, principal: Principal, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    @_guarded
    async def ServerReady(self, principal: Principal, request: Any, context: Any) -> Any:
        ready = self._inference.is_ready and not self._draining.is_set()
        return service_pb2.ServerReadyResponse(ready=ready)

    @_guarded
    async def ServerMetadata(self, principal: Principal, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(
            name="millrace", version=self._version, extensions=EXTENSIONS
        )

    @_guarded
    async def ModelReady(self, principal: Principal, request: Any, context: Any) -> Any:
        try:
            model = reference(request.name, request.version)
            self._inference.check_ready(principal.tenant, model)
        except (NotFound, Unavailable):
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    @_guarded
    async def ModelMetadata(self, principal: Principal, request: Any, context: Any) -> Any:
        model = reference(request.name, request.version)
        return await self._inference.metadata(principal.tenant, model)

    @_guarded
    async def ModelConfig(self, principal: Principal, request: Any, context: Any) -> Any:
        model = reference(request.name, request.version)
        return await self._inference.config(principal.tenant, model)

    @_guarded
    async def ModelStatistics(self, principal: Principal, request: Any, context: Any) -> Any:
        model = reference(request.name, request.version) if request.name else ""
        found = await self._inference.statistics(principal.tenant, model)
        return service_pb2.ModelStatisticsResponse(model_stats=found)

    @_guarded
    async def ModelInfer(self, principal: Principal, request: Any, context: Any) -> Any:
        return await self._inference.infer(_asked(principal, request, context, is_stream=False))

    async def ModelStreamInfer(
        self, requests: AsyncIterable[Any], context: Any
    ) -> AsyncGenerator[Any, None]:
        """Each request goes its own way; answers to different ones may mix, and name their id."""
        metadata = dict(context.invocation_metadata() or ())
        ends_with_status = metadata.get(_STATUS_CODES, "").lower() == "true"
        try:
            principal = await self.authenticate(context)

            def answer(request: Any) -> AsyncGenerator[Any, None]:
                asked = _asked(principal, request, context, is_stream=True)
                return self._inference.answers(asked)

            conversation = _Conversation(answer, self._draining, ends_with_status)
            async with aclosing(conversation.messages(requests)) as messages:
                async for message in messages:
                    yield message
        except MillraceError as error:
            await _abort(context, error)

    @_guarded
    async def _refuse(self, principal: Principal, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _REFUSAL)

    RepositoryIndex = _refuse
    RepositoryModelLoad = _refuse
    RepositoryModelUnload = _refuse
    SystemSharedMemoryStatus = _refuse
    SystemSharedMemoryRegister = _refuse
    SystemSharedMemoryUnregister = _refuse
    CudaSharedMemoryStatus = _refuse
    CudaSharedMemoryRegister = _refuse
    CudaSharedMemoryUnregister = _refuse
    TraceSetting = _refuse
    LogSettings = _refuse


class _Conversation:
    """A client's stream: its requests are answered side by side, as the answers come.

    A failure is told in a message of its own, and the stream goes on, unless the client asked for
    it to end then. While the gateway drains, what was asked is answered, and the stream ends.
    """

    def __init__(self, answer: Answer, draining: asyncio.Event, ends_with_status: bool) -> None:
        self._answer = answer
        self._draining = draining
        self._ends_with_status = ends_with_status
        self._answering: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_MOST_UNANSWERED)
        # A message, an error that ends the stream, or None at the end.
        self._outbox: asyncio.Queue[Any] = asyncio.Queue(_WAITING_RESPONSES)

    async def messages(self, requests: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
        """The answers to ``requests``.

        Raises:
            MillraceError: what ends the stream.
        """
        conducting = asyncio.create_task(self._conduct(requests))
        try:
            while (message := await self._outbox.get()) is not None:
                if isinstance(message, MillraceError):
                    raise message
                yield message
        finally:
            tasks = (conducting, *self._answering)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _conduct(self, requests: AsyncIterable[Any]) -> None:
        reading = asyncio.create_task(self._read(requests))
        stopping = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            is_complete = reading.done()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await asyncio.gather(*self._answering)
        await self._outbox.put(None if is_complete else restarting())

    async def _read(self, requests: AsyncIterable[Any]) -> None:
        async for request in requests:
            await self._room.acquire()
            task = asyncio.create_task(self._tell(request))
            self._answering.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._answering.discard(task)
        self._room.release()

    async def _tell(self, request: Any) -> None:
        try:
            async with aclosing(self._answer(request)) as responses:
                async for response in responses:
                    message = service_pb2.ModelStreamInferResponse(infer_response=response)
                    await self._outbox.put(message)
        except MillraceError as error:
            await self._outbox.put(error if self._ends_with_status else _failure(request, error))
        except Exception:  # a fault of ours, which must end this request and no other
            LOG.exception("an inference request failed")
            internal = Unavailable("the request failed; the gateway's log says why", reason="FAULT")
            await self._outbox.put(_failure(request, internal))


def _asked(principal: Principal, request: Any, context: Any, is_stream: bool) -> Asked:
    model = reference(request.model_name, request.model_version)
    check_request(request)

    async def question(_place: Place) -> Any:
        return request

    return Asked(principal, model, question, is_stream, moment_after(context.time_remaining()))


def _failure(request: Any, error: MillraceError) -> Any:
    message = service_pb2.ModelStreamInferResponse(error_message=str(error))
    message.infer_response.id = request.id
    return message


async def _abort(context: Any, error: MillraceError) -> Any:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
