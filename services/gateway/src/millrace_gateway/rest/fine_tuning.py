"""``/v1/fine_tuning/jobs``, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/fine-tuning
"""

import zlib
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.tuner.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.integrations import (
    Integrations,
    integration_messages,
    integration_object,
)
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    STATUS_OF_STATE,
    Failure,
    Id,
    Metadata,
    Progress,
    RequestBody,
    failure,
    identifier,
    progress,
    seconds,
    seconds_or_none,
)
from millrace_gateway.rest.tuning_methods import (
    Hyperparameters,
    Method,
    Supervised,
    method_message,
    method_object,
    request_fields,
)
from millrace_gateway.rest.tuning_prompt import (
    PROMPT_FIELDS,
    JobPrompt,
    prompt_message,
    prompt_object,
)
from millrace_gateway.rest.tuning_sweep import (
    Sweep,
    sweep_fields,
    sweep_message,
    sweep_object,
)
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("fine-tuning", "/v1/fine_tuning/jobs")


class CreateJob(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Id
    validation_file: Id | None = None
    suffix: str | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    method: Method | None = None
    hyperparameters: Annotated[
        Hyperparameters | None,
        Field(description="Use `method`.", json_schema_extra={"deprecated": True}),
    ] = None
    metadata: Metadata | None = None
    sweep: Annotated[
        Sweep | None, Field(description="Trains several times, and keeps what did best.")
    ] = None
    integrations: Integrations | None = None
    prompt: Annotated[
        JobPrompt | None, Field(description="Makes examples of a file of columns.")
    ] = None


class Job(BaseModel):
    """A fine-tuning job. ``base_version``, ``progress``, ``sweep``, ``prompt`` are beyond the
    OpenAI API; so is what ``method`` says of methods that it does not have. ``hyperparameters``
    are those of a supervised job only, as there."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    base_version: str | None
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    hyperparameters: dict[str, Any] | None
    method: dict[str, Any]
    seed: int
    error: Failure | None
    estimated_finish: int | None = None
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None
    progress: Progress | None
    sweep: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None


class CheckpointMetrics(BaseModel):
    """The names are the OpenAI API's; ``measurements`` are all that the method takes.

    All held-out examples are measured each time, so "full" says nothing more.
    """

    step: int
    train_loss: float
    valid_loss: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None
    train_mean_token_accuracy: float | None = None
    valid_mean_token_accuracy: float | None
    measurements: dict[str, float]


class JobCheckpoint(BaseModel):
    """``digest`` and ``final`` are beyond the OpenAI API."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    digest: str
    final: bool


@ROUTER.post("", response_model=Job)
async def create_job(body: CreateJob, caller: CallerOf) -> Job:
    """Start a fine-tuning job. Its checkpoints are compressed and served by themselves."""
    method = _method(body)
    request = pb.CreateJobRequest(
        parent=caller.parent,
        base_model=body.model,
        training_file=_file_name(caller, body.training_file),
        validation_file=_file_name(caller, body.validation_file),
        suffix=body.suffix or "",
        seed=_seed(body, caller),
        method=method_message(method),
        metadata=body.metadata or {},
        integrations=integration_messages(body.integrations or []),
        sweep=sweep_message(body.sweep),
        prompt=prompt_message(caller, body.prompt),
        request_id=caller.request_id,
    )
    fields = {**request_fields(method.type), **sweep_fields(body.sweep), **PROMPT_FIELDS}
    response = await upstream.call(caller.upstream.tuner.CreateJob, request, fields)
    return job_object(caller, response.job)


@ROUTER.get("", response_model=ListObject[Job])
async def list_jobs(
    query: Request, caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Newest first: all, those with `metadata[key]=value`, or without any (`metadata=null`)."""
    request = pb.ListJobsRequest(
        parent=caller.parent,
        page_size=page_size(limit),
        page_token=token_after(after),
        metadata=_wanted_metadata(query),
        without_metadata=query.query_params.get("metadata") == "null",
    )
    response = await upstream.call(caller.upstream.tuner.ListJobs, request)
    items = [job_object(caller, job) for job in response.jobs]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{job_id}", response_model=Job)
async def get_job(job_id: str, caller: CallerOf) -> Job:
    request = pb.GetJobRequest(name=_job_name(caller, job_id))
    response = await upstream.call(caller.upstream.tuner.GetJob, request)
    return job_object(caller, response.job)


@ROUTER.post("/{job_id}/cancel", response_model=Job)
async def cancel_job(job_id: str, caller: CallerOf) -> Job:
    request = pb.CancelJobRequest(name=_job_name(caller, job_id))
    response = await upstream.call(caller.upstream.tuner.CancelJob, request)
    return job_object(caller, response.job)


@ROUTER.post("/{job_id}/pause", response_model=Job)
async def pause_job(job_id: str, caller: CallerOf) -> Job:
    """Stop the job after its newest checkpoint."""
    request = pb.PauseJobRequest(name=_job_name(caller, job_id))
    response = await upstream.call(caller.upstream.tuner.PauseJob, request)
    return job_object(caller, response.job)


@ROUTER.post("/{job_id}/resume", response_model=Job)
async def resume_job(job_id: str, caller: CallerOf) -> Job:
    """Take a paused job up from its newest checkpoint."""
    request = pb.ResumeJobRequest(name=_job_name(caller, job_id))
    response = await upstream.call(caller.upstream.tuner.ResumeJob, request)
    return job_object(caller, response.job)


@ROUTER.get("/{job_id}/checkpoints", response_model=ListObject[JobCheckpoint])
async def list_job_checkpoints(
    job_id: str, caller: CallerOf, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """The job's checkpoints, newest first."""
    request = pb.ListCheckpointsRequest(
        parent=_job_name(caller, job_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.tuner.ListCheckpoints, request)
    items = [_checkpoint(job_id, checkpoint) for checkpoint in response.checkpoints]
    return page_of(items, bool(response.next_page_token))


def job_object(caller: Caller, job: pb.Job) -> Job:
    status = _status(job)
    method = method_object(job.method)
    supervised = method.get("supervised", {})
    return Job(
        id=identifier(job.name) or "",
        created_at=seconds(job.create_time),
        finished_at=seconds_or_none(job, "finish_time"),
        model=job.base_model,
        base_version=caller.relative(job.base_version) or None,
        fine_tuned_model=job.tuned_model if status == "succeeded" else None,
        organization_id=caller.tenant,
        status=status,
        training_file=identifier(job.training_file) or "",
        validation_file=identifier(job.validation_file),
        result_files=[names.last_id(name) for name in (job.result_file, job.trials_file) if name],
        trained_tokens=job.trained_tokens or None,
        hyperparameters=supervised.get("hyperparameters"),
        method=method,
        seed=job.seed,
        error=_error(job.failure),
        estimated_finish=seconds_or_none(job, "estimated_finish_time"),
        integrations=[integration_object(one) for one in job.integrations],
        metadata=dict(job.metadata) or None,
        progress=progress(job.progress),
        sweep=sweep_object(job.sweep) if job.HasField("sweep") else None,
        prompt=prompt_object(job.prompt) if job.HasField("prompt") else None,
    )


def _checkpoint(job_id: str, checkpoint: pb.Checkpoint) -> JobCheckpoint:
    # The final checkpoint is the model itself; an earlier one is named as OpenAI does.
    step = "" if checkpoint.final else f":ckpt-step-{checkpoint.step}"
    loss = checkpoint.valid_loss if checkpoint.HasField("valid_loss") else None
    measured = dict(checkpoint.metrics)
    accuracy = measured.get("valid_mean_token_accuracy")
    return JobCheckpoint(
        id=identifier(checkpoint.name) or "",
        created_at=seconds(checkpoint.create_time),
        fine_tuned_model_checkpoint=f"{checkpoint.model}{step}",
        fine_tuning_job_id=job_id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(
            step=checkpoint.step,
            train_loss=checkpoint.train_loss,
            valid_loss=loss,
            full_valid_loss=loss,
            full_valid_mean_token_accuracy=accuracy,
            valid_mean_token_accuracy=accuracy,
            measurements=measured,
        ),
        digest=checkpoint.content.digest,
        final=checkpoint.final,
    )


def _method(body: CreateJob) -> Method:
    if body.method is not None and body.hyperparameters is not None:
        raise InvalidArgument(
            "give the hyperparameters within 'method' alone, not also by themselves",
            field="hyperparameters",
        )
    if body.method is not None:
        return body.method
    supervised = Supervised(hyperparameters=body.hyperparameters or Hyperparameters())
    return Method(type="supervised", supervised=supervised)


def _seed(body: CreateJob, caller: Caller) -> int:
    """The seed that is asked for, or one for this request: when it is sent again, the same."""
    if body.seed is not None:
        return body.seed
    return zlib.crc32(caller.request_id.encode())


def _status(job: pb.Job) -> str:
    if job.state == lifecycle_pb2.WORK_STATE_QUEUED and not job.HasField("validate_time"):
        return "validating_files"
    return STATUS_OF_STATE[job.state]


def _error(message: lifecycle_pb2.Failure) -> Failure | None:
    """The tuner says of which file it speaks."""
    found = failure(message)
    if found is None:
        return None
    files = {"training file": "training_file", "validation file": "validation_file"}
    named = (field for words, field in files.items() if words in found.message)
    return found.model_copy(update={"param": next(named, None)})


def _wanted_metadata(query: Request) -> dict[str, str]:
    given = query.query_params.items()
    return {k[9:-1]: v for k, v in given if k.startswith("metadata[") and k.endswith("]")}


def _job_name(caller: Caller, job_id: str) -> str:
    return caller.name("jobs", job_id, "fine-tuning job")


def _file_name(caller: Caller, file_id: str | None) -> str:
    """Of a file, or of a dataset of examples: their ids tell them apart."""
    if not file_id:
        return ""
    collection = "datasets" if file_id.startswith("dataset-") else "files"
    return f"{caller.parent}/{collection}/{file_id}"
