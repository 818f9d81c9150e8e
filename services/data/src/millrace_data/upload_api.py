"""The gRPC face of uploads: convert, call, convert."""

from collections.abc import Iterator

import grpc

from millrace.data.v1 import uploads_pb2 as pb
from millrace.data.v1 import uploads_pb2_grpc
from millrace_data import convert
from millrace_data.api import DataServicer, chunks_of, header_of, whole
from millrace_data.domain import RequestKey
from millrace_data.uploads import UploadApp
from millrace_runtime import idempotency, names

UPLOAD_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["UploadService"].full_name


class UploadServicer(uploads_pb2_grpc.UploadServiceServicer):
    """``millrace.data.v1.UploadService``; requests were validated by the interceptor."""

    def __init__(self, uploads: UploadApp, data: DataServicer) -> None:
        self._uploads = uploads
        self._data = data

    def register(self, server: grpc.Server) -> None:
        """Both services of the stage."""
        self._data.register(server)
        uploads_pb2_grpc.add_UploadServiceServicer_to_server(self, server)

    def CreateUpload(
        self, request: pb.CreateUploadRequest, context: grpc.ServicerContext
    ) -> pb.CreateUploadResponse:
        purpose = convert.purpose_from_proto(request.purpose)
        assert purpose is not None, "the proto's rules ask for a purpose"
        upload = self._uploads.create(
            names.tenant_of(request.parent),
            request.filename,
            purpose,
            request.mime_type,
            request.size_bytes,
            request.expire_after_seconds or None,
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreateUploadResponse(upload=convert.upload_to_proto(upload))

    def GetUpload(
        self, request: pb.GetUploadRequest, context: grpc.ServicerContext
    ) -> pb.GetUploadResponse:
        upload = self._uploads.get(*convert.upload_key(request.name))
        return pb.GetUploadResponse(upload=convert.upload_to_proto(upload))

    def AddUploadPart(
        self, requests: Iterator[pb.AddUploadPartRequest], context: grpc.ServicerContext
    ) -> pb.AddUploadPartResponse:
        header: pb.AddUploadPartHeader = header_of(requests)
        part = self._uploads.add_part(
            *convert.upload_key(header.parent),
            header.request_id,
            whole(chunks_of(requests), header, context),
        )
        return pb.AddUploadPartResponse(part=convert.part_to_proto(part))

    def ListUploadParts(
        self, request: pb.ListUploadPartsRequest, context: grpc.ServicerContext
    ) -> pb.ListUploadPartsResponse:
        tenant, id = convert.upload_key(request.parent)
        found, token = self._uploads.parts(tenant, id, request.page_size, request.page_token)
        parts = [convert.part_to_proto(part) for part in found]
        return pb.ListUploadPartsResponse(parts=parts, next_page_token=token)

    def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: grpc.ServicerContext
    ) -> pb.CompleteUploadResponse:
        tenant, id = convert.upload_key(request.name)
        upload = self._uploads.complete(tenant, id, request.part_ids, request.md5)
        return pb.CompleteUploadResponse(upload=convert.upload_to_proto(upload))

    def CancelUpload(
        self, request: pb.CancelUploadRequest, context: grpc.ServicerContext
    ) -> pb.CancelUploadResponse:
        upload = self._uploads.cancel(*convert.upload_key(request.name))
        return pb.CancelUploadResponse(upload=convert.upload_to_proto(upload))
