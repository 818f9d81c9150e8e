"""The public gRPC API: the lifecycle services, behind keys, each call checked and passed on.

Requests are parsed, since a key's tenant must be the only one they name; responses go through
as the bytes they are. ``WatchRoutes``, ``ReportAnswers``, ``HoldVersion`` and
``MatchDeployments`` are the mesh's own and are not here. ``KeyService`` is answered by the
gateway itself.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import prompts_pb2, rows_pb2, uploads_pb2
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.gateway.v1 import service_pb2 as gateway_pb2
from millrace.registry.v1 import recalls_pb2, serving_tunings_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.tuner.v1 import service_pb2 as tuner_pb2
from millrace_gateway import convert, upstream
from millrace_gateway.app import KeyRing, Keys, bearer
from millrace_gateway.domain import Principal
from millrace_gateway.rest import tasks
from millrace_gateway.rest.compressions import checkpoint_reference
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument, MillraceError, NotFound
from millrace_runtime.interceptors import check
from millrace_runtime.rich_status import to_status

LOG = logging.getLogger(__name__)

_MODULES = (
    ("data", data_pb2),
    ("data", uploads_pb2),
    ("data", prompts_pb2),
    ("data", rows_pb2),
    ("trainer", trainer_pb2),
    ("tuner", tuner_pb2),
    ("compressor", compressor_pb2),
    ("registry", registry_pb2),
    ("registry", recalls_pb2),
    ("registry", serving_tunings_pb2),
)
_INTERNAL = frozenset(("WatchRoutes", "ReportAnswers", "HoldVersion", "MatchDeployments"))
_KEY_SERVICE = "millrace.gateway.v1.KeyService"
# Fields for people, which may say anything.
_FREE_TEXT = frozenset(
    (
        "display_name",
        "filename",
        "mime_type",
        "reason",
        "suffix",
        "metadata[]",
        "template_json",
        "completion",
    )
)

Answer = Callable[[Principal, Any], Awaitable[Message]]


@dataclass(frozen=True)
class _Method:
    """A method that is passed on."""

    path: str
    stage: str
    request_class: type[Message]
    streams_requests: bool
    streams_responses: bool


class Proxy(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # of bytes, both ways
    """Answers every method of the public gRPC API."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        services: upstream.Upstream,
        key_ring: KeyRing,
        keys: Keys,
    ) -> None:
        self._channels = channels
        self._services = services
        self._key_ring = key_ring
        self._methods = {method.path: method for method in _public_methods()}
        self._own = _key_methods(keys)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method in self._own:
            request_class, answer = self._own[details.method]
            return grpc.unary_unary_rpc_method_handler(self._answering(request_class, answer))
        method = self._methods.get(details.method)
        if method is None:
            return None
        if method.streams_requests:
            return grpc.stream_unary_rpc_method_handler(self._passing_uploads(method))
        if method.streams_responses:
            return grpc.unary_stream_rpc_method_handler(self._passing_streams(method))
        return grpc.unary_unary_rpc_method_handler(self._passing(method))

    def _answering(self, request_class: type[Message], answer: Answer) -> Any:
        async def handle(content: bytes, context: Any) -> Any:
            try:
                principal = await self._authenticate(context)
                request = _parse(request_class, content)
                check(request)
                return (await answer(principal, request)).SerializeToString()
            except MillraceError as error:
                return await _abort(context, error)

        return handle

    def _passing(self, method: _Method) -> Any:
        async def handle(content: bytes, context: Any) -> Any:
            try:
                request = await self._checked(method, content, context)
                proceed = self._channels[method.stage].unary_unary(method.path, None, None)
                return await proceed(request, timeout=_remaining(context))
            except (MillraceError, grpc.RpcError) as error:
                return await _abort(context, error)

        return handle

    def _passing_streams(self, method: _Method) -> Any:
        async def handle(content: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                request = await self._checked(method, content, context)
                proceed = self._channels[method.stage].unary_stream(method.path, None, None)
                async for response in proceed(request, timeout=_remaining(context)):
                    yield response
            except (MillraceError, grpc.RpcError) as error:
                await _abort(context, error)

        return handle

    def _passing_uploads(self, method: _Method) -> Any:
        async def handle(contents: AsyncIterator[bytes], context: Any) -> Any:
            mistakes: list[MillraceError] = []
            try:
                principal = await self._authenticate(context)
                requests = _checked_stream(method, principal, contents, mistakes)
                proceed = self._channels[method.stage].stream_unary(method.path, None, None)
                return await proceed(requests, timeout=_remaining(context))
            except (MillraceError, grpc.RpcError, asyncio.CancelledError) as error:
                if mistakes:
                    return await _abort(context, mistakes[0])
                if isinstance(error, asyncio.CancelledError):
                    raise
                return await _abort(context, error)

        return handle

    async def _checked(self, method: _Method, content: bytes, context: Any) -> bytes:
        principal = await self._authenticate(context)
        request = _parse(method.request_class, content)
        require_own(request, principal.tenant)
        if isinstance(request, compressor_pb2.CreateCompressionRequest):
            # Clients name a checkpoint; where its content lies is for its owner to say.
            reference = await checkpoint_reference(self._services, request.checkpoint.name)
            request.checkpoint.CopyFrom(reference)
        await tasks.own_content(self._services, request)
        check(request)
        return _identified(request)

    async def _authenticate(self, context: Any) -> Principal:
        metadata = dict(context.invocation_metadata() or ())
        return await self._key_ring.authenticate(bearer(metadata.get("authorization", "")))


def service_names() -> list[str]:
    """Full names of the services that are answered, for reflection and health."""
    return sorted({method.path.split("/")[1] for method in _public_methods()} | {_KEY_SERVICE})


def require_own(message: Message, tenant: str) -> None:
    """Check that a request names nobody else's things.

    Raises:
        NotFound: it names another tenant's, which for this caller do not exist.
        InvalidArgument: a text holds U+0000.
    """
    upstream.check_text(message)
    for path, value in upstream.texts(message):
        if path.rsplit(".", 1)[-1] in _FREE_TEXT or not value.startswith("tenants/"):
            continue
        if names.tenant_of(value + "/") != tenant:
            raise NotFound(f"{value!r} does not exist", field=path)


def _public_methods() -> list[_Method]:
    return [
        _described(stage, descriptor)
        for stage, module in _MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for descriptor in service.methods
        if descriptor.name not in _INTERNAL
    ]


def _described(stage: str, descriptor: MethodDescriptor) -> _Method:
    return _Method(
        path=f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        stage=stage,
        request_class=GetMessageClass(descriptor.input_type),
        streams_requests=descriptor.client_streaming,
        streams_responses=descriptor.server_streaming,
    )


def _key_methods(keys: Keys) -> dict[str, tuple[type[Message], Answer]]:
    async def create(principal: Principal, request: Any) -> Message:
        tenant, role = names.tenant_of(request.parent), convert.role(request.role)
        key, secret = await asyncio.to_thread(
            keys.create,
            principal,
            tenant,
            request.display_name,
            role,
            convert.limits(request.limits),
        )
        return gateway_pb2.CreateKeyResponse(key=convert.key_message(key), secret=secret)

    async def list_(principal: Principal, request: Any) -> Message:
        tenant, size, token = names.tenant_of(request.parent), request.page_size, request.page_token
        page, following = await asyncio.to_thread(keys.list, principal, tenant, size, token)
        messages = [convert.key_message(key) for key in page]
        return gateway_pb2.ListKeysResponse(keys=messages, next_page_token=following)

    async def update(principal: Principal, request: Any) -> Message:
        tenant, key_id = names.tenant_of(request.name), names.last_id(request.name)
        changes = vars(convert.limits(request.limits))
        key = await asyncio.to_thread(keys.change_limits, principal, tenant, key_id, changes)
        return gateway_pb2.UpdateKeyResponse(key=convert.key_message(key))

    async def revoke(principal: Principal, request: Any) -> Message:
        tenant, key_id = names.tenant_of(request.name), names.last_id(request.name)
        key = await asyncio.to_thread(keys.revoke, principal, tenant, key_id)
        return gateway_pb2.RevokeKeyResponse(key=convert.key_message(key))

    return {
        f"/{_KEY_SERVICE}/CreateKey": (gateway_pb2.CreateKeyRequest, create),
        f"/{_KEY_SERVICE}/ListKeys": (gateway_pb2.ListKeysRequest, list_),
        f"/{_KEY_SERVICE}/UpdateKey": (gateway_pb2.UpdateKeyRequest, update),
        f"/{_KEY_SERVICE}/RevokeKey": (gateway_pb2.RevokeKeyRequest, revoke),
    }


async def _checked_stream(
    method: _Method,
    principal: Principal,
    contents: AsyncIterator[bytes],
    mistakes: list[MillraceError],
) -> AsyncIterator[bytes]:
    """The requests that pass; at the first that does not it is noted and the upload broken off."""
    async for content in contents:
        try:
            request = _parse(method.request_class, content)
            require_own(request, principal.tenant)
            check(request)
        except MillraceError as error:
            mistakes.append(error)
            raise
        yield _identified(request.header, request) if request.HasField("header") else content


def _identified(request: Any, message: Message | None = None) -> bytes:
    """``message``, or ``request`` itself, encoded; ``request`` is given an id if it has none.

    With one it can be passed on twice and is carried out once: a service may be restarted.
    """
    if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
        request.request_id = names.new_id("request")
    encoded: bytes = (message or request).SerializeToString()
    return encoded


def _parse(request_class: type[Message], content: bytes) -> Any:
    try:
        return request_class.FromString(content)
    except DecodeError as error:
        raise InvalidArgument(f"the request is no {request_class.__name__}: {error}") from error


def _remaining(context: Any) -> float | None:
    """What the client's deadline leaves, in seconds; None without one: then ours applies."""
    remaining: float | None = context.time_remaining()
    return remaining


async def _abort(context: Any, error: Exception) -> Any:
    meaning = upstream.error_of(error) if isinstance(error, grpc.RpcError) else error
    assert isinstance(meaning, MillraceError)
    await context.abort_with_status(rpc_status.to_status(to_status(meaning)))
