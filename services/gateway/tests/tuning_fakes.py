"""The service of searches for settings, played by the real servicer that a test gives it."""

import asyncio
from typing import Any

from grpc_status import rpc_status

from millrace.registry.v1 import serving_tunings_pb2_grpc
from millrace_runtime.errors import MillraceError, Unavailable
from millrace_runtime.rich_status import to_status


class FakeServingTunings(serving_tunings_pb2_grpc.ServingTuningServiceServicer):
    """``is_away``: it does not answer, as while it is restarted."""

    def __init__(self) -> None:
        self.real: Any = None
        self.is_away = False

    async def CreateServingTuning(self, request: Any, context: Any) -> Any:
        return await self._answer(self.real.CreateServingTuning, request, context)

    async def GetServingTuning(self, request: Any, context: Any) -> Any:
        return await self._answer(self.real.GetServingTuning, request, context)

    async def ListServingTunings(self, request: Any, context: Any) -> Any:
        return await self._answer(self.real.ListServingTunings, request, context)

    async def CancelServingTuning(self, request: Any, context: Any) -> Any:
        return await self._answer(self.real.CancelServingTuning, request, context)

    async def GetServingTuningReport(self, request: Any, context: Any) -> Any:
        return await self._answer(self.real.GetServingTuningReport, request, context)

    async def _answer(self, method: Any, request: Any, context: Any) -> Any:
        try:
            if self.is_away:
                raise Unavailable("it is restarted", reason="UNAVAILABLE")
            return await asyncio.to_thread(method, request, context)
        except MillraceError as error:
            return await context.abort_with_status(rpc_status.to_status(to_status(error)))
