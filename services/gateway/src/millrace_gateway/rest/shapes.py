"""What the lifecycle's resources share in REST: progress, failure, content, times, numbers."""

from typing import Annotated, Any, Literal

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict, Field

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_runtime import names

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "paused"]

STATUS_OF_STATE: dict[int, Status] = {
    lifecycle_pb2.WORK_STATE_QUEUED: "queued",
    lifecycle_pb2.WORK_STATE_RUNNING: "running",
    lifecycle_pb2.WORK_STATE_SUCCEEDED: "succeeded",
    lifecycle_pb2.WORK_STATE_FAILED: "failed",
    lifecycle_pb2.WORK_STATE_CANCELLED: "cancelled",
    lifecycle_pb2.WORK_STATE_PAUSED: "paused",
}

# Numbers that the protos' fields can hold; the rules in the .proto say what is sensible.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class RequestBody(BaseModel):
    """A request body: unknown fields are refused, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Failure(BaseModel):
    """Why a piece of work failed."""

    code: str
    message: str
    param: str | None = None


class Progress(BaseModel):
    """How far a piece of work has come, in its phase's own unit."""

    phase: str
    completed: int
    total: int
    metrics: dict[str, float]


class Content(BaseModel):
    """A committed file or directory."""

    digest: str
    size_bytes: int


def seconds(moment: Timestamp) -> int:
    """Unix time, in whole seconds."""
    return moment.seconds


def seconds_or_none(message: Message, field: str) -> int | None:
    """A timestamp field's Unix time; None while it is unset."""
    return getattr(message, field).seconds if message.HasField(field) else None


def failure(message: lifecycle_pb2.Failure) -> Failure | None:
    if not message.reason:
        return None
    return Failure(code=message.reason.lower(), message=message.message)


def progress(message: lifecycle_pb2.Progress) -> Progress | None:
    if not message.phase and not message.total:
        return None
    return Progress(
        phase=message.phase,
        completed=message.completed,
        total=message.total,
        metrics=dict(message.metrics),
    )


def content(message: lifecycle_pb2.Content) -> Content | None:
    if not message.digest:
        return None
    return Content(digest=message.digest, size_bytes=message.size_bytes)


def identifier(name: str) -> str | None:
    """The last segment of a name; None for an empty one."""
    return names.last_id(name) if name else None


def given(body: BaseModel | None) -> dict[str, Any]:
    """The fields of a body that were given a value."""
    return {} if body is None else body.model_dump(exclude_none=True)


def enum_word(enum: Any, value: int, prefix: str) -> str:
    """``TARGET_OPENVINO_INT8`` -> ``openvino_int8``."""
    return str(enum.Name(value)).removeprefix(prefix).lower()


def enum_value(enum: Any, word: str, prefix: str) -> int:
    """``openvino_int8`` -> ``TARGET_OPENVINO_INT8``.

    Raises:
        KeyError: there is no such value.
    """
    return int(enum.DESCRIPTOR.values_by_name[prefix + word.upper()].number)
