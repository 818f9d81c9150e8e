"""The gRPC face of the service: convert, call, convert."""

import time
from collections.abc import Iterator
from typing import Any

import grpc

from millrace.data.v1 import service_pb2 as pb
from millrace.data.v1 import service_pb2_grpc
from millrace.data.v1.uploads_pb2 import AddUploadPartHeader
from millrace_data import convert
from millrace_data.app import DatasetApp, FileApp
from millrace_data.domain import RequestKey
from millrace_runtime import idempotency, names
from millrace_runtime.errors import Aborted, InvalidArgument

_SETTLE_SECONDS = 0.1
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DataService"].full_name


class DataServicer(service_pb2_grpc.DataServiceServicer):
    """``millrace.data.v1.DataService``; requests were validated by the interceptor."""

    def __init__(self, files: FileApp, datasets: DatasetApp) -> None:
        self._files = files
        self._datasets = datasets

    def register(self, server: grpc.Server) -> None:
        service_pb2_grpc.add_DataServiceServicer_to_server(self, server)

    def UploadFile(
        self, requests: Iterator[pb.UploadFileRequest], context: grpc.ServicerContext
    ) -> pb.UploadFileResponse:
        header: pb.UploadFileHeader = header_of(requests)
        purpose = convert.purpose_from_proto(header.purpose)
        assert purpose is not None, "the proto's rules ask for a purpose"
        file = self._files.upload(
            names.tenant_of(header.parent),
            header.filename,
            purpose,
            header.request_id,
            whole(chunks_of(requests), header, context),
            header.expire_after_seconds or None,
        )
        return pb.UploadFileResponse(file=convert.file_to_proto(file))

    def GetFile(
        self, request: pb.GetFileRequest, context: grpc.ServicerContext
    ) -> pb.GetFileResponse:
        file = self._files.get(*convert.file_key(request.name))
        return pb.GetFileResponse(file=convert.file_to_proto(file))

    def ListFiles(
        self, request: pb.ListFilesRequest, context: grpc.ServicerContext
    ) -> pb.ListFilesResponse:
        found, token = self._files.page(
            names.tenant_of(request.parent),
            request.page_size,
            request.page_token,
            convert.purpose_from_proto(request.purpose),
            request.oldest_first,
        )
        files = [convert.file_to_proto(file) for file in found]
        return pb.ListFilesResponse(files=files, next_page_token=token)

    def DeleteFile(
        self, request: pb.DeleteFileRequest, context: grpc.ServicerContext
    ) -> pb.DeleteFileResponse:
        self._files.delete(*convert.file_key(request.name))
        return pb.DeleteFileResponse()

    def ReadFile(
        self, request: pb.ReadFileRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ReadFileResponse]:
        for chunk in self._files.read(*convert.file_key(request.name)):
            yield pb.ReadFileResponse(chunk=chunk)

    def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: grpc.ServicerContext
    ) -> pb.CreateDatasetResponse:
        tenant = names.tenant_of(request.parent)
        dataset = self._datasets.create(
            tenant,
            request.display_name,
            convert.source_from_proto(request.source, tenant),
            convert.recipe_from_proto(request.recipe),
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreateDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    def GetDataset(
        self, request: pb.GetDatasetRequest, context: grpc.ServicerContext
    ) -> pb.GetDatasetResponse:
        dataset = self._datasets.get(*convert.dataset_key(request.name))
        return pb.GetDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: grpc.ServicerContext
    ) -> pb.ListDatasetsResponse:
        found, token = self._datasets.page(
            names.tenant_of(request.parent), request.page_size, request.page_token
        )
        datasets = [convert.dataset_to_proto(dataset) for dataset in found]
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    def CancelDataset(
        self, request: pb.CancelDatasetRequest, context: grpc.ServicerContext
    ) -> pb.CancelDatasetResponse:
        dataset = self._datasets.cancel(*convert.dataset_key(request.name))
        return pb.CancelDatasetResponse(dataset=convert.dataset_to_proto(dataset))


def header_of(requests: Iterator[Any]) -> Any:
    """The first message of an upload, whole or in parts.

    Raises:
        InvalidArgument: there is none, or it is no header.
    """
    first = next(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidArgument("the first message of an upload must be its header", field="header")
    return first.header


def chunks_of(requests: Iterator[Any]) -> Iterator[bytes]:
    """The messages after the header.

    Raises:
        InvalidArgument: one of them is another header.
    """
    for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument("an upload has one header only", field="header")
        yield request.chunk


def whole(
    chunks: Iterator[bytes],
    header: pb.UploadFileHeader | AddUploadPartHeader,
    context: grpc.ServicerContext,
) -> Iterator[bytes]:
    """``chunks``, which must not only end but be complete.

    gRPC ends the stream of a client that has gone like one that sent everything, once in about
    fifteen times (measured), and lets the call look alive for some milliseconds more.

    Raises:
        InvalidArgument: there are more or fewer bytes than the header says.
        Aborted: the client has gone.
    """
    received_bytes = 0
    for chunk in chunks:
        received_bytes += len(chunk)
        yield chunk
    if not header.HasField("size_bytes"):
        time.sleep(_SETTLE_SECONDS)
    if not context.is_active():
        raise Aborted("the upload broke off", reason="UPLOAD_BROKEN_OFF")
    if header.HasField("size_bytes") and received_bytes != header.size_bytes:
        raise InvalidArgument(
            f"the header says {header.size_bytes} bytes, and {received_bytes} came; try again",
            reason="SIZE_MISMATCH",
            field="header.size_bytes",
        )
