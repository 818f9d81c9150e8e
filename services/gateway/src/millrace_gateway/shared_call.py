"""Many generations over one ``ModelStreamInfer`` call, whose answers come together.

Each message of a call costs the engine, Triton and the gateway about as much as a step of a small
model: many streams with a message for each token keep one another from generating. Over a shared
call the engine answers all of them with one message at a time, a *batch*, whose parcels say whose
they are (``millrace_registry/engines/group.py``). Why:
deploy/adr/0009-streams-that-leave-together.md

The call ends when nothing is left to answer: Triton does not stop while one is open.
"""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from millrace_gateway.silence import Watch
from millrace_gateway.triton import (
    Delta,
    EngineFailed,
    EngineRequest,
    delta_of,
    delta_of_parcel,
    joined,
    meaning,
    meaning_of_text,
    message_of,
    parcels_of,
)


class SharedCall:
    """A group of generations at one endpoint; of several models if need be.

    Args:
        stub: of Triton's service.
        deadline_seconds: longest that one generation may take.
        silence_seconds: silence of the whole call after which its engine is given up for dead.
    """

    def __init__(self, stub: Any, deadline_seconds: float, silence_seconds: float) -> None:
        self.is_open = True
        self._deadline_seconds = deadline_seconds
        self._group = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._answers: dict[str, _Answer] = {}
        self._unsent: asyncio.Queue[Any] = asyncio.Queue()
        self._call = stub.ModelStreamInfer()
        self._watch = Watch(self._call, silence_seconds)
        self.tasks = (asyncio.create_task(self._write()), asyncio.create_task(self._read()))

    async def generate(self, request: EngineRequest) -> AsyncIterator[Delta]:
        """As ``Engine.generate``."""
        # A request that is asked once more must not meet itself.
        identifier = f"{request.id}.{next(self._numbers)}"
        answer = self._answers[identifier] = _Answer(self._deadline_seconds)
        if not self.is_open:
            answer.fail(EngineFailed("the call to the engine has just ended"))
        message = message_of(request)
        message.id = identifier
        message.parameters["group"].string_param = self._group
        self._unsent.put_nowait(message)
        has_ended = False
        try:
            while not has_ended:
                delta = await answer.next()
                has_ended = bool(delta.finish_reason)
                yield delta
        finally:
            answer.close()
            del self._answers[identifier]
            if not has_ended:
                self._unsent.put_nowait(self._cancellation(request, identifier))
            if not self._answers:
                self._close()

    def give_up(self, reason: Exception) -> None:
        """End every generation in progress with ``reason``."""
        for answer in self._answers.values():
            answer.fail(reason)

    def _close(self) -> None:
        """Let Triton end the call; the watch goes on until it has."""
        self.is_open = False
        self._unsent.put_nowait(None)

    def _cancellation(self, request: EngineRequest, identifier: str) -> Any:
        message = service_pb2.ModelInferRequest(
            model_name=request.triton_model, model_version=str(request.version)
        )
        message.inputs.add(name="sampling", datatype="BYTES", shape=[1])
        message.raw_input_contents.append(b"\2\0\0\0{}")
        message.parameters["group"].string_param = self._group
        message.parameters["cancel"].string_param = identifier
        return message

    async def _write(self) -> None:
        """Send what is to be sent, in its order; whether it arrives the reader will hear."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            while (message := await self._unsent.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()

    async def _read(self) -> None:
        """Hand out what comes; when nothing more will, whoever waits hears why."""
        reason: Exception = EngineFailed("the engine's stream ended before its answers did")
        try:
            async for message in self._call:
                self._watch.heard()
                self._hand_out(message)
        except grpc.RpcError as error:
            reason = meaning(error)
        except asyncio.CancelledError:
            if self._watch.reason is None:  # it is we who are cancelled
                raise
        finally:
            self.is_open = False
            self._watch.stop()
            self._unsent.put_nowait(None)
            self.give_up(self._watch.reason or reason)

    def _hand_out(self, message: Any) -> None:
        response = message.infer_response
        if message.error_message:
            self._fail(response.id, message.error_message)
        elif (parcels := parcels_of(response)) is None:
            self._put(response.id, delta_of(response))
        else:
            for parcel in parcels:
                self._put(parcel["id"], delta_of_parcel(parcel))

    def _put(self, identifier: str, delta: Delta) -> None:
        # What was cancelled may still come.
        if (answer := self._answers.get(identifier)) is not None:
            answer.put(delta)

    def _fail(self, identifier: str, text: str) -> None:
        if (answer := self._answers.get(identifier)) is not None:
            answer.fail(meaning_of_text(text))


class _Answer:
    """What has come for one generation and was not read yet."""

    def __init__(self, deadline_seconds: float) -> None:
        self._came = asyncio.Event()
        self._deltas: list[Delta] = []
        self._reason: Exception | None = None
        late = EngineFailed(f"the answer took longer than {deadline_seconds:g} s")
        self._timer = asyncio.get_running_loop().call_later(deadline_seconds, self.fail, late)

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._came.set()

    def fail(self, reason: Exception) -> None:
        """Nothing more comes. The first reason holds."""
        self._reason = self._reason or reason
        self._came.set()

    async def next(self) -> Delta:
        """All that came since the last time, once there is something.

        Raises:
            Exception: why nothing more comes, when all that came is read.
        """
        while not self._deltas:
            if self._reason is not None:
                raise self._reason
            self._came.clear()
            await self._came.wait()
        came, self._deltas = self._deltas, []
        return came[0] if len(came) == 1 else joined(came)

    def close(self) -> None:
        self._timer.cancel()
