"""The gRPC face of rows: convert, call, convert."""

import grpc

from millrace.data.v1 import rows_pb2 as pb
from millrace.data.v1 import rows_pb2_grpc
from millrace_data.row_search import Holder, RowSearch
from millrace_examples.row_hash import parsed, spelled
from millrace_runtime import names

ROW_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RowService"].full_name
_SHOWN_ROWS = 100


class RowServicer(rows_pb2_grpc.RowServiceServicer):
    """``millrace.data.v1.RowService``; requests were validated by the interceptor."""

    def __init__(self, rows: RowSearch) -> None:
        self._rows = rows

    def register(self, server: grpc.Server) -> None:
        rows_pb2_grpc.add_RowServiceServicer_to_server(self, server)

    def FindRows(
        self, request: pb.FindRowsRequest, context: grpc.ServicerContext
    ) -> pb.FindRowsResponse:
        hashes = [parsed(hash) for hash in request.hashes]
        file_id = names.last_id(request.file) if request.file else ""
        tenant = names.tenant_of(request.parent)
        found = self._rows.find(tenant, hashes, file_id, only=request.names)
        return pb.FindRowsResponse(
            holders=[_holder(holder) for holder in found.holders],
            row_count=found.row_count,
            unindexed=found.unindexed,
        )


def _holder(holder: Holder) -> pb.RowHolder:
    return pb.RowHolder(
        name=holder.name,
        digest=holder.digest,
        held_out=holder.is_heldout,
        row_count=len(holder.hashes),
        hashes=[spelled(hash) for hash in holder.hashes[:_SHOWN_ROWS]],
    )
