"""Errors to gRPC rich status and back (google.rpc.Status with ErrorInfo and BadRequest)."""

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from millrace_runtime.errors import ERROR_OF_CODE, MillraceError, Unavailable

_DOMAIN = "millrace"


def to_status(error: MillraceError) -> status_pb2.Status:
    """The status that says all that ``error`` says."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN))]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    code = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=code, message=str(error), details=details)


def from_rpc_error(error: grpc.RpcError) -> MillraceError:
    """What a failed call means; an error without a rich status is ``Unavailable``."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return Unavailable(str(error), reason="UPSTREAM_ERROR")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # also of aio
    code = error.code()
    kind = ERROR_OF_CODE.get(code)
    if kind is None:
        return Unavailable(f"{code.name}: {error.details()}", reason="UPSTREAM_ERROR")
    if status is None:
        return kind(error.details() or code.name, reason=code.name)
    return kind(status.message, reason=_reason(status) or code.name, field=_field(status))


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def _field(status: status_pb2.Status) -> str:
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(request) and request.field_violations:
            return str(request.field_violations[0].field)
    return ""
