"""The gRPC face of the service: convert, call, convert."""

import grpc

from millrace.compressor.v1 import service_pb2 as pb
from millrace.compressor.v1 import service_pb2_grpc
from millrace_compressor import convert, plot
from millrace_compressor.app import CompressorApp
from millrace_runtime import names

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CompressorService"].full_name


class CompressorServicer(service_pb2_grpc.CompressorServiceServicer):
    """``millrace.compressor.v1.CompressorService``; requests were validated by the interceptor."""

    def __init__(self, app: CompressorApp) -> None:
        self._app = app

    def register(self, server: grpc.Server) -> None:
        service_pb2_grpc.add_CompressorServiceServicer_to_server(self, server)

    def CreateCompression(
        self, request: pb.CreateCompressionRequest, context: grpc.ServicerContext
    ) -> pb.CreateCompressionResponse:
        compression = self._app.create(convert.order_from_proto(request))
        return pb.CreateCompressionResponse(compression=convert.compression_to_proto(compression))

    def GetCompression(
        self, request: pb.GetCompressionRequest, context: grpc.ServicerContext
    ) -> pb.GetCompressionResponse:
        compression = self._app.get(*convert.compression_key(request.name))
        return pb.GetCompressionResponse(compression=convert.compression_to_proto(compression))

    def ListCompressions(
        self, request: pb.ListCompressionsRequest, context: grpc.ServicerContext
    ) -> pb.ListCompressionsResponse:
        found, token = self._app.page(
            names.tenant_of(request.parent),
            request.model,
            request.page_size,
            request.page_token,
        )
        compressions = [convert.compression_to_proto(compression) for compression in found]
        return pb.ListCompressionsResponse(compressions=compressions, next_page_token=token)

    def CancelCompression(
        self, request: pb.CancelCompressionRequest, context: grpc.ServicerContext
    ) -> pb.CancelCompressionResponse:
        compression = self._app.cancel(*convert.compression_key(request.name))
        return pb.CancelCompressionResponse(compression=convert.compression_to_proto(compression))

    def GetCompressionReport(
        self, request: pb.GetCompressionReportRequest, context: grpc.ServicerContext
    ) -> pb.GetCompressionReportResponse:
        tenant, id = convert.compression_key(request.name)
        found = self._app.report(tenant, id, whole_model=request.whole_model)
        return pb.GetCompressionReportResponse(
            compressions=[convert.compression_to_proto(compression) for compression in found],
            plot=plot.svg(found) if request.with_plot else b"",
        )
