"""Tasks in JSON: what a deployment is for, by which its artifacts are measured and judged."""

from typing import Annotated, Literal

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import BaseModel, Field

from millrace.compressor.v1 import service_pb2 as pb
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller
from millrace_gateway.rest.shapes import Id, Int32, Int64, RequestBody, enum_word, identifier
from millrace_runtime.errors import InvalidArgument, NotFound

METRIC = "TASK_METRIC_"
# What rows with a reference answer are (``millrace_examples.kinds``); empty: uploaded before rows
# were looked at, and the compression says what is wrong.
_KINDS = frozenset({"conversation", "preference", ""})
_OF_DEPLOYMENTS = (registry_pb2.CreateDeploymentRequest, registry_pb2.UpdateDeploymentRequest)


class Task(RequestBody):
    """Prompts with reference answers, which the original and each artifact answer greedily."""

    file: Annotated[
        Id,
        Field(
            description="An uploaded file (purpose fine-tune) of conversations, or of prompts "
            "with completions. The last answer of each is the reference."
        ),
    ]
    metric: Annotated[
        Literal["exact_match", "contains", "token_f1"],
        Field(description="How an answer is scored, both normalised as SQuAD does it."),
    ]
    rows: Annotated[
        Annotated[Int32, Field(ge=1, le=4096)] | None,
        Field(description="At most, chosen by hash and seed; 64 unless told."),
    ] = None
    max_answer_tokens: Annotated[
        Annotated[Int32, Field(ge=1, le=1024)] | None,
        Field(description="A longer answer is cut; 32 unless told."),
    ] = None
    seed: Annotated[Int64, Field(ge=0)] | None = None


class TaskObject(BaseModel):
    """What is null is the compressor's default. ``digest``: of the file, as it was then."""

    file: str
    digest: str
    metric: str
    rows: int | None
    max_answer_tokens: int | None
    seed: int | None


async def task_message(body: Task, caller: Caller) -> pb.Task:
    """A task with the file's content: clients name it, and never where it lies.

    Raises:
        InvalidArgument: FILE_NOT_FOUND, FILE_PURPOSE, WRONG_FORMAT.
        MillraceError: the data service does not answer.
    """
    name = caller.name("files", body.file, "file")
    content = await _content(caller.upstream, name, "task.file")
    told = body.model_dump(exclude_none=True, exclude={"file"})
    return json_format.ParseDict(
        {**told, "metric": METRIC + body.metric.upper()}, pb.Task(file=name, content=content)
    )


async def own_content(services: upstream.Upstream, request: Message) -> None:
    """Replace what a request over gRPC says of where its task's file lies, as ``task_message``.

    Raises:
        MillraceError: as there.
    """
    if isinstance(request, pb.CreateCompressionRequest) and request.HasField("task"):
        task, field = request.task, "task.file"
    elif isinstance(request, _OF_DEPLOYMENTS) and request.deployment.HasField("task"):
        task, field = request.deployment.task, "deployment.task.file"
    else:
        return
    task.content.CopyFrom(await _content(services, task.file, field))


async def _content(services: upstream.Upstream, name: str, field: str) -> lifecycle_pb2.Content:
    """Of a file of this name whose rows have reference answers; ``field`` named it."""
    id, request = name.rpartition("/")[2], data_pb2.GetFileRequest(name=name)
    try:
        file = (await upstream.call(services.data.GetFile, request, {"name": field})).file
    except NotFound:
        raise InvalidArgument(
            f"there is no file {id!r}; upload it first", reason="FILE_NOT_FOUND", field=field
        ) from None
    if file.purpose != data_pb2.FILE_PURPOSE_FINE_TUNE:
        raise InvalidArgument(
            f"{id} was uploaded for another purpose; upload it with purpose 'fine-tune'",
            reason="FILE_PURPOSE",
            field=field,
        )
    if file.report.kind not in _KINDS:
        raise InvalidArgument(
            f"the rows of {id} are of the format {file.report.format}, and have no reference "
            'answers; write each as {"messages": […]} or {"prompt": …, "completion": …}',
            reason="WRONG_FORMAT",
            field=field,
        )
    return file.content


def task(message: pb.Task) -> TaskObject:
    given = {field.name: value for field, value in message.ListFields()}
    return TaskObject(
        file=identifier(message.file) or "",
        digest=message.content.digest,
        metric=enum_word(pb.TaskMetric, message.metric, METRIC),
        rows=given.get("rows"),
        max_answer_tokens=given.get("max_answer_tokens"),
        seed=given.get("seed"),
    )
