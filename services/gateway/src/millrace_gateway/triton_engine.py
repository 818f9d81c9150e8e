"""Generation on Triton: decoupled requests over KServe's ``ModelStreamInfer``.

A request has a call of its own, whose metadata carries its trace, or it shares one with others
(``shared_call.py``): a call of its own costs more than a token, and each message on it again.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2_grpc

from millrace_gateway.shared_call import SharedCall
from millrace_gateway.silence import Watch
from millrace_gateway.triton import (
    Delta,
    EngineFailed,
    EngineRequest,
    delta_of,
    meaning,
    message_of,
)
from millrace_runtime.errors import Unavailable

_OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", 16 * 2**20),
)
# Makes Triton end a stream with the engine's own status code, not with text alone.
_STATUS_CODES = ("triton_grpc_error", "true")
# So many requests have calls of their own at an endpoint before others share one.
_ALONE = 3


class TritonEngine:
    """Triton's gRPC endpoints, a channel each, opened when first used."""

    def __init__(self, deadline_seconds: float, silence_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._silence_seconds = silence_seconds
        self._stubs: dict[str, Any] = {}
        self._channels: list[grpc.aio.Channel] = []
        self._watches: set[Watch] = set()
        self._alone: Counter[str] = Counter()
        self._shared: dict[str, SharedCall] = {}

    def generate(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        """See ``Engine``. Where much is asked at once, requests for text share a call."""
        if not request.is_plain:
            return self._ask_alone(endpoint, request)
        call = self._shared.get(endpoint)
        if call is None or not call.is_open:
            if self._alone[endpoint] < _ALONE:
                return self._ask_alone(endpoint, request)
            call = SharedCall(self._stub(endpoint), self._deadline_seconds, self._silence_seconds)
            self._shared[endpoint] = call
        return call.generate(request)

    async def _ask_alone(self, endpoint: str, request: EngineRequest) -> AsyncIterator[Delta]:
        metadata = [_STATUS_CODES]
        if request.traceparent:
            metadata.append(("traceparent", request.traceparent))
        call = self._stub(endpoint).ModelStreamInfer(
            metadata=metadata, timeout=self._deadline_seconds
        )
        watch = Watch(call, self._silence_seconds)
        self._watches.add(watch)
        self._alone[endpoint] += 1
        try:
            await call.write(message_of(request))
            await call.done_writing()
            async for response in call:
                watch.heard()
                if response.error_message:
                    raise EngineFailed(response.error_message)
                yield delta_of(response.infer_response)
            watch.check()
        except grpc.RpcError as error:
            raise meaning(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # else it is we who are cancelled
                watch.check()
            raise
        finally:
            self._alone[endpoint] -= 1
            self._watches.discard(watch)
            watch.stop()
            call.cancel()  # does nothing to a call that has ended

    def break_off(self, reason: Unavailable) -> None:
        """End every generation in progress with ``reason``; the engine is not to blame."""
        for watch in self._watches:
            watch.give_up(reason)
        for call in self._shared.values():
            call.give_up(reason)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    def _stub(self, endpoint: str) -> Any:
        if endpoint not in self._stubs:
            channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
            self._channels.append(channel)
            self._stubs[endpoint] = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stubs[endpoint]
