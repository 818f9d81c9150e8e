"""The services of recalls, played by the real ones' servicers that a test gives them."""

import asyncio
from typing import Any

from millrace.data.v1 import rows_pb2_grpc
from millrace.registry.v1 import recalls_pb2_grpc


class FakeRows(rows_pb2_grpc.RowServiceServicer):
    def __init__(self) -> None:
        self.real: Any = None

    async def FindRows(self, request: Any, context: Any) -> Any:
        return await asyncio.to_thread(self.real.FindRows, request, context)


class FakeRecalls(recalls_pb2_grpc.RecallServiceServicer):
    def __init__(self) -> None:
        self.real: Any = None

    async def CreateRecall(self, request: Any, context: Any) -> Any:
        return await asyncio.to_thread(self.real.CreateRecall, request, context)

    async def GetRecall(self, request: Any, context: Any) -> Any:
        return await asyncio.to_thread(self.real.GetRecall, request, context)

    async def LiftRecall(self, request: Any, context: Any) -> Any:
        return await asyncio.to_thread(self.real.LiftRecall, request, context)

    async def ListRecalls(self, request: Any, context: Any) -> Any:
        return await asyncio.to_thread(self.real.ListRecalls, request, context)
