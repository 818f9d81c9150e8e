"""Files of batches: read from the data service, and kept there."""

import asyncio
from collections.abc import AsyncIterator
from typing import IO

import grpc

from millrace.data.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.upstream import Upstream

_CHUNK_BYTES = 2**20


class DataFiles:
    """The data service's files, a tenant's by their ids."""

    def __init__(self, services: Upstream) -> None:
        self._data = services.data

    async def fetch(self, tenant: str, file_id: str, target: IO[bytes]) -> None:
        """Copy a file's bytes, which are verified before the first of them.

        Raises:
            NotFound: there is no such file, or no more.
            MillraceError: what the service says, or that it does not answer.
        """
        request = pb.ReadFileRequest(name=f"tenants/{tenant}/files/{file_id}")
        async for response in upstream.stream(self._data.ReadFile(request)):
            await asyncio.to_thread(target.write, response.chunk)

    async def keep(
        self, tenant: str, filename: str, request_id: str, source: IO[bytes], size_bytes: int
    ) -> str:
        """Keep a batch's output, and return its id. The same request id makes it once.

        Raises:
            MillraceError: what the service says, or that it does not answer.
        """
        header = pb.UploadFileHeader(
            parent=f"tenants/{tenant}",
            filename=filename,
            purpose=pb.FILE_PURPOSE_BATCH_OUTPUT,
            request_id=request_id,
            size_bytes=size_bytes,
        )
        try:
            response = await self._data.UploadFile(_upload(header, source))
        except grpc.RpcError as error:
            raise upstream.error_of(error) from error
        return response.file.name.rpartition("/")[2]


async def _upload(
    header: pb.UploadFileHeader, source: IO[bytes]
) -> AsyncIterator[pb.UploadFileRequest]:
    yield pb.UploadFileRequest(header=header)
    while chunk := await asyncio.to_thread(source.read, _CHUNK_BYTES):
        yield pb.UploadFileRequest(chunk=chunk)
