"""The services behind the gateway: channels with token, deadline and trace, and clear errors."""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from opentelemetry.instrumentation.grpc import aio_client_interceptors

from millrace.compressor.v1.service_pb2_grpc import CompressorServiceStub
from millrace.data.v1.prompts_pb2_grpc import PromptServiceStub
from millrace.data.v1.rows_pb2_grpc import RowServiceStub
from millrace.data.v1.service_pb2_grpc import DataServiceStub
from millrace.data.v1.uploads_pb2_grpc import UploadServiceStub
from millrace.registry.v1.recalls_pb2_grpc import RecallServiceStub
from millrace.registry.v1.service_pb2_grpc import RegistryServiceStub
from millrace.registry.v1.serving_tunings_pb2_grpc import ServingTuningServiceStub
from millrace.trainer.v1.service_pb2_grpc import TrainerServiceStub
from millrace.tuner.v1.graders_pb2_grpc import GraderServiceStub
from millrace.tuner.v1.service_pb2_grpc import TunerServiceStub
from millrace_runtime import channel
from millrace_runtime.errors import InvalidArgument, MillraceError, Unauthenticated, Unavailable
from millrace_runtime.interceptors import TOKEN_HEADER, check
from millrace_runtime.rich_status import from_rpc_error

if TYPE_CHECKING:
    from millrace.compressor.v1.service_pb2_grpc import CompressorServiceAsyncStub
    from millrace.data.v1.prompts_pb2_grpc import PromptServiceAsyncStub
    from millrace.data.v1.rows_pb2_grpc import RowServiceAsyncStub
    from millrace.data.v1.service_pb2_grpc import DataServiceAsyncStub
    from millrace.data.v1.uploads_pb2_grpc import UploadServiceAsyncStub
    from millrace.registry.v1.recalls_pb2_grpc import RecallServiceAsyncStub
    from millrace.registry.v1.service_pb2_grpc import RegistryServiceAsyncStub
    from millrace.registry.v1.serving_tunings_pb2_grpc import ServingTuningServiceAsyncStub
    from millrace.trainer.v1.service_pb2_grpc import TrainerServiceAsyncStub
    from millrace.tuner.v1.graders_pb2_grpc import GraderServiceAsyncStub
    from millrace.tuner.v1.service_pb2_grpc import TunerServiceAsyncStub

STAGES = ("data", "trainer", "tuner", "compressor", "registry")
DEADLINE_SECONDS = 10.0
TRANSFER_DEADLINE_SECONDS = 600.0
_LONG = frozenset(
    (
        # Reads and writes all of a file before it answers.
        "/millrace.data.v1.UploadService/CompleteUpload",
        # Looks into an index of each dataset, and of files of before makes one.
        "/millrace.data.v1.RowService/FindRows",
    )
)
_OPTIONS: Sequence[tuple[str, Any]] = (
    *channel.OPTIONS,
    ("grpc.max_receive_message_length", 16 * 2**20),
)

_Response = TypeVar("_Response")


@dataclass(frozen=True)
class Upstream:
    """A stub for each service; data has four, the registry three, the tuner two."""

    data: "DataServiceAsyncStub"
    uploads: "UploadServiceAsyncStub"
    prompts: "PromptServiceAsyncStub"
    rows: "RowServiceAsyncStub"
    trainer: "TrainerServiceAsyncStub"
    tuner: "TunerServiceAsyncStub"
    graders: "GraderServiceAsyncStub"
    compressor: "CompressorServiceAsyncStub"
    registry: "RegistryServiceAsyncStub"
    recalls: "RecallServiceAsyncStub"
    serving_tunings: "ServingTuningServiceAsyncStub"


def stubs(channels: Mapping[str, grpc.aio.Channel]) -> Upstream:
    """Stubs over one channel a stage."""
    return Upstream(
        data=DataServiceStub(channels["data"]),
        uploads=UploadServiceStub(channels["data"]),
        prompts=PromptServiceStub(channels["data"]),
        rows=RowServiceStub(channels["data"]),
        trainer=TrainerServiceStub(channels["trainer"]),
        tuner=TunerServiceStub(channels["tuner"]),
        graders=GraderServiceStub(channels["tuner"]),
        compressor=CompressorServiceStub(channels["compressor"]),
        registry=RegistryServiceStub(channels["registry"]),
        recalls=RecallServiceStub(channels["registry"]),
        serving_tunings=ServingTuningServiceStub(channels["registry"]),
    )


def open_channel(address: str, token: str | None) -> grpc.aio.Channel:
    """A channel to a service of the mesh; must be called within the event loop."""
    interceptors = [
        *aio_client_interceptors(),
        _UnaryUnary(token),
        _UnaryStream(token),
        _StreamUnary(token),
    ]
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)


async def call(
    method: Callable[..., Awaitable[_Response]],
    request: Message,
    fields: Mapping[str, str] | None = None,
) -> _Response:
    """Validate a request by the rules in its .proto, call a stub's method with it.

    Args:
        fields: how the REST API calls the request's fields, where the names differ.

    Raises:
        MillraceError: the request breaks a rule, or what the service said.
    """
    try:
        check_text(request)
        check(request)
        return await method(request)
    except grpc.RpcError as error:
        raise renamed(error_of(error), fields or {}) from error
    except InvalidArgument as error:
        raise renamed(error, fields or {}) from error


async def stream(responses: AsyncIterable[_Response]) -> AsyncIterator[_Response]:
    """A response stream whose failures are MillraceErrors."""
    try:
        async for response in responses:
            yield response
    except grpc.RpcError as error:
        raise error_of(error) from error


def error_of(error: grpc.RpcError) -> MillraceError:
    """What a failed call means to a client of the gateway.

    A service that refuses the gateway's own token is a fault of the mesh, not of the client;
    and what failed inside it is for its log.
    """
    meaning = from_rpc_error(error)
    if meaning.reason in ("UPSTREAM_ERROR", grpc.StatusCode.UNAVAILABLE.name):
        return Unavailable(
            "a service behind the gateway does not answer; try again, and tell the operator if "
            "it stays so",
            reason="SERVICE_UNAVAILABLE",
        )
    if isinstance(meaning, Unauthenticated):
        return Unavailable(
            "a service refuses the gateway's internal token; tell the operator",
            reason="INTERNAL_TOKEN_REFUSED",
        )
    return meaning


def renamed(error: MillraceError, fields: Mapping[str, str]) -> MillraceError:
    """The same error, its field called as the client called it."""
    new = fields.get(error.field)
    if new is not None:
        message = str(error).removeprefix(f"{error.field}: ")
        prefix = f"{new}: " if message != str(error) else ""
        error.args = (prefix + message,)
        error.field = new
    return error


def check_text(message: Message) -> None:
    """Refuse U+0000 in any text: PostgreSQL cannot keep it.

    Raises:
        InvalidArgument: naming the field.
    """
    for path, value in texts(message):
        if "\0" in value:
            raise InvalidArgument(f"{path}: must not hold the character U+0000", field=path)


def texts(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every string within a message, with its path; map entries too."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from _map_texts(path, value)
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                yield from texts(item, f"{path}.")
        elif field.type == field.TYPE_STRING:
            for item in value if field.is_repeated else (value,):
                yield path, item


def _map_texts(path: str, value: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        for text in (key, item):
            if isinstance(text, str):
                yield f"{path}[]", text


def _completed(details: Any, token: str | None, deadline_seconds: float | None) -> Any:
    """The call with the mesh's token, and with a deadline when it has none."""
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if token:
        metadata.add(TOKEN_HEADER, token)
    timeout = details.timeout if details.timeout is not None else deadline_seconds
    return grpc.aio.ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )


class _Token:
    def __init__(self, token: str | None) -> None:
        self._token = token


# grpc.aio files an interceptor under the first kind that it is an instance of: one class each.
class _UnaryUnary(_Token, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_unary(self, proceed: Any, details: Any, request: Any) -> Any:
        name = details.method.decode() if isinstance(details.method, bytes) else details.method
        deadline = TRANSFER_DEADLINE_SECONDS if name in _LONG else DEADLINE_SECONDS
        return await proceed(_completed(details, self._token, deadline), request)


class _UnaryStream(_Token, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_stream(self, proceed: Any, details: Any, request: Any) -> Any:
        return await proceed(_completed(details, self._token, None), request)


class _StreamUnary(_Token, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_unary(self, proceed: Any, details: Any, requests: Any) -> Any:
        deadline = TRANSFER_DEADLINE_SECONDS
        return await proceed(_completed(details, self._token, deadline), requests)
