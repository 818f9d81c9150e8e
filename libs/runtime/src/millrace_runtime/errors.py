"""The errors that users see, whatever the transport.

    MillraceError
    ├── InvalidArgument      a field is wrong                      INVALID_ARGUMENT   400
    ├── Unauthenticated      no key, or one that is not known      UNAUTHENTICATED    401
    ├── PermissionDenied     the key may not do this               PERMISSION_DENIED  403
    ├── NotFound             there is no such thing for you        NOT_FOUND          404
    ├── AlreadyExists        it exists with other content          ALREADY_EXISTS     409
    ├── Aborted              somebody else changed it meanwhile    ABORTED            409
    ├── FailedPrecondition   its state does not allow this         FAILED_PRECONDITION 400
    ├── ResourceExhausted    a quota or the disk is used up        RESOURCE_EXHAUSTED 429
    └── Unavailable          try again later                       UNAVAILABLE        503

Each says what was wrong, where (``field``) and what to do, in one sentence or two.
"""

import grpc


class MillraceError(Exception):
    """Base of all errors that are meant for users.

    Attributes:
        reason: UPPER_SNAKE identifier, stable across releases (google.rpc.ErrorInfo.reason).
        field: path of the field at fault, as the client sent it; empty when none is.
    """

    code = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, reason: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class InvalidArgument(MillraceError):
    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, message: str, *, reason: str = "INVALID_ARGUMENT", field: str = "") -> None:
        super().__init__(message, reason=reason, field=field)


class Unauthenticated(MillraceError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(MillraceError):
    code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(MillraceError):
    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, message: str, *, reason: str = "NOT_FOUND", field: str = "name") -> None:
        super().__init__(message, reason=reason, field=field)


class AlreadyExists(MillraceError):
    code = grpc.StatusCode.ALREADY_EXISTS


class Aborted(MillraceError):
    code = grpc.StatusCode.ABORTED


class FailedPrecondition(MillraceError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(MillraceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(MillraceError):
    code = grpc.StatusCode.UNAVAILABLE


ERROR_OF_CODE: dict[grpc.StatusCode, type[MillraceError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        Aborted,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
    )
}
