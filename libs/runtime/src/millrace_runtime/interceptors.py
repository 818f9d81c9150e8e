"""What happens around every gRPC call of a service, once, outside the servicers.

In this order: the internal token is asked for, the request is validated by the rules in its
.proto (protovalidate), the servicer is called, an error becomes a rich status, and the call
is counted and timed.
"""

import hmac
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import protovalidate
from google.protobuf.message import Message
from grpc_status import rpc_status
from prometheus_client import Counter, Histogram

from millrace_runtime import storage
from millrace_runtime.errors import InvalidArgument, MillraceError, Unauthenticated
from millrace_runtime.rich_status import to_status

LOG = logging.getLogger(__name__)

TOKEN_HEADER = "x-millrace-token"
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")

_CALLS = Counter("millrace_rpc_server_calls_total", "gRPC calls answered.", ["rpc_method", "code"])
_SECONDS = Histogram(
    "millrace_rpc_server_duration_seconds", "Time to answer a gRPC call.", ["rpc_method"]
)


class ServiceInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # not at run time
    """Guards and measures every call; ``token`` is the secret to ask for, if any."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def intercept_service(
        self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(_OPEN_SERVICES):
            return handler
        if self._token and not _carries(details.invocation_metadata, self._token):
            return _refusing(handler)
        return _guarded(handler, details.method)


def check(message: Message) -> None:
    """Apply the rules in the message's .proto.

    Raises:
        InvalidArgument: naming the first field that breaks one.
    """
    violations = protovalidate.collect_violations(message)
    if violations:
        first = violations[0].proto
        elements = first.field.elements if first.field else ()
        field = ".".join(_path_element(element) for element in elements)
        raise InvalidArgument(f"{field}: {first.message}" if field else first.message, field=field)


def _path_element(element: Any) -> str:
    if element.subscript is not None and element.subscript.field == "index":
        return f"{element.field_name}[{element.subscript.value}]"
    return str(element.field_name)


def _carries(metadata: Any, token: str) -> bool:
    return any(key == TOKEN_HEADER and hmac.compare_digest(value, token) for key, value in metadata)


def _refusing(handler: Any) -> Any:
    def refuse(_request: Any, context: grpc.ServicerContext) -> None:
        error = Unauthenticated(
            f"the call carries no valid {TOKEN_HEADER}", reason="INTERNAL_TOKEN_REQUIRED"
        )
        context.abort_with_status(rpc_status.to_status(to_status(error)))

    return _rebuild(handler, refuse)


def _guarded(handler: Any, method: str) -> Any:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary
    assert behaviour is not None, f"{method} is bidirectional: no service here is"

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        if handler.request_streaming:
            return behaviour(_checked(request), context)
        check(request)
        return behaviour(request, context)

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        with _Call(method, context):
            return call(request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _Call(method, context):
            yield from call(request, context)

    return _rebuild(handler, stream if handler.response_streaming else unary)


def _checked(requests: Iterator[Message]) -> Iterator[Message]:
    for request in requests:
        check(request)
        yield request


class _Call:
    """Times one call and turns what it raises into a rich status."""

    def __init__(self, method: str, context: grpc.ServicerContext) -> None:
        self._method = method
        self._context = context
        self._start = time.perf_counter()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        _SECONDS.labels(self._method).observe(time.perf_counter() - self._start)
        if error is not None and not isinstance(error, MillraceError):
            error = storage.answer_of(error) or error
        code = error.code if isinstance(error, MillraceError) else grpc.StatusCode.INTERNAL
        _CALLS.labels(self._method, "OK" if error is None else code.name).inc()
        if isinstance(error, MillraceError):
            self._context.abort_with_status(rpc_status.to_status(to_status(error)))
        if isinstance(error, Exception) and self._context.is_active():
            LOG.error("%s failed", self._method, exc_info=error)
            self._context.abort(grpc.StatusCode.INTERNAL, "internal error; see the service's log")


def _rebuild(handler: Any, behaviour: Callable[..., Any]) -> Any:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
