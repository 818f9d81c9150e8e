"""What can go wrong between this client and a gateway.

MillraceError
├── NoGateway             nobody says where a gateway is, or nobody answers there
├── NotStreamed           the gateway answered a list where a stream was asked for
├── MeshNotInstalled      the command runs a mesh on this machine, and that is not installed
└── ApiError              the gateway answered, with an error
    ├── BadRequest        400  something in the request is wrong; ``param`` says what
    ├── Unauthenticated   401  no key, or one that is not known
    ├── PermissionDenied  403  the key may not do this
    ├── NotFound          404  there is no such thing for you
    ├── Conflict          409  it exists with other content, or changed meanwhile
    ├── RateLimited       429  too much at once; try again later
    └── ServerError       5xx  not the request's fault; try again later
"""

from collections.abc import Mapping

import httpx


class MillraceError(Exception):
    """Base of all errors of this client. The message is for people."""


class NoGateway(MillraceError):
    pass


class NotStreamed(MillraceError):
    pass


class MeshNotInstalled(MillraceError):
    def __init__(self) -> None:
        super().__init__(
            "this command runs a mesh on this machine, which needs the package millrace-mesh; "
            "to use a mesh elsewhere, set MILLRACE_BASE_URL and OPENAI_API_KEY"
        )


class ApiError(MillraceError):
    """An error answer, in the OpenAI API's shape.

    Attributes:
        status: of HTTP.
        code: stable identifier of the reason, in lower case; may be empty.
        param: the request's field at fault; may be empty.
    """

    def __init__(self, message: str, status: int, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class BadRequest(ApiError):
    pass


class Unauthenticated(ApiError):
    pass


class PermissionDenied(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class RateLimited(ApiError):
    pass


class ServerError(ApiError):
    pass


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
}


def from_response(response: httpx.Response) -> ApiError:
    """The error that an answer of 400 or above says; its body must have been read."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError):  # something else than a gateway answered
        return kind(f"{response.request.url} answered {status}: {response.text[:200]}", status)
    return kind(message, status, code or "", param or "")
