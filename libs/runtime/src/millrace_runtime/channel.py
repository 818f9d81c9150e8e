"""Channels from one service to another: token, default deadline, trace context, clear errors.

A service may be restarted at any time. A call that it did not take is sent again, for about
three seconds within its deadline: callers see a slower answer, no error. That is safe because
all that is created carries a request id.

    SERVICE_CONFIG  the same for gRPC clients outside the mesh (channel argument
                    ``grpc.service_config``; https://grpc.io/docs/guides/service-config)
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
from opentelemetry.instrumentation.grpc import client_interceptor, grpcext

from millrace_runtime.interceptors import TOKEN_HEADER
from millrace_runtime.rich_status import from_rpc_error

DEFAULT_DEADLINE_SECONDS = 10.0
# The core makes five attempts at the most, whatever is asked for:
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # A server that is stopping says CANCELLED to the calls that reach it before clients know.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
SERVICE_CONFIG = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRIES}]})
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.enable_retries", 1),
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str]] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _CallDefaults(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]  # not at run time
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]  # not at run time
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]  # not at run time
):
    """Adds the token to every call, and a deadline to those that have none and end."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def _complete(self, details: Any, deadline: float | None) -> _CallDetails:
        metadata = list(details.metadata or ())
        if self._token:
            metadata.append((TOKEN_HEADER, self._token))
        timeout = details.timeout if details.timeout is not None else deadline
        return _CallDetails(details.method, timeout, metadata, details.credentials, None, None)

    def intercept_unary_unary(self, proceed: Callable[..., Any], details: Any, req: Any) -> Any:
        return proceed(self._complete(details, DEFAULT_DEADLINE_SECONDS), req)

    def intercept_stream_unary(self, proceed: Callable[..., Any], details: Any, req: Any) -> Any:
        return proceed(self._complete(details, None), req)

    def intercept_unary_stream(self, proceed: Callable[..., Any], details: Any, req: Any) -> Any:
        return proceed(self._complete(details, None), req)


def open_channel(address: str, token: str | None) -> grpc.Channel:
    """A channel to another service of the mesh, for synchronous stubs."""
    plain = grpc.insecure_channel(address, options=OPTIONS)
    completed = grpc.intercept_channel(plain, _CallDefaults(token))
    # OpenTelemetry's interceptor has a protocol of its own, and goes outermost so that the
    # context it injects is passed on.
    channel: grpc.Channel = grpcext.intercept_channel(completed, client_interceptor())
    return channel


def call(method: Callable[..., Any], request: Any, **options: Any) -> Any:
    """Call a stub's method.

    Raises:
        MillraceError: what the other side said, as the same kind of error.
    """
    try:
        return method(request, **options)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
