"""``/v1/fine_tuning/jobs``, as the OpenAI API has them.

Reference: https://platform.openai.com/docs/api-reference/fine-tuning
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from millrace.tuner.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
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
    Number,
    Progress,
    RequestBody,
    Seed,
    failure,
    identifier,
    progress,
    seconds,
    seconds_or_none,
)
from millrace_runtime.errors import InvalidArgument

ROUTER = router("fine-tuning", "/v1/fine_tuning/jobs")

_FIELDS = {
    "base_model": "model",
    "supervised.epochs": "method.supervised.hyperparameters.n_epochs",
    "supervised.batch_size": "method.supervised.hyperparameters.batch_size",
    "supervised.learning_rate_multiplier": (
        "method.supervised.hyperparameters.learning_rate_multiplier"
    ),
    "supervised.lora.rank": "method.supervised.lora.rank",
    "supervised.lora.alpha": "method.supervised.lora.alpha",
    "supervised.lora.dropout": "method.supervised.lora.dropout",
}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Auto = Literal["auto"]


class Hyperparameters(RequestBody):
    """``auto`` leaves the choice to the tuner."""

    n_epochs: Auto | Count = "auto"
    batch_size: Auto | Count = "auto"
    learning_rate_multiplier: Auto | Annotated[Number, Field(gt=0)] = "auto"


class Lora(RequestBody):
    """Low-rank adapter (Hu et al. 2021); beyond the OpenAI API."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    alpha: Annotated[Number, Field(gt=0)] | None = None
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None


class Supervised(RequestBody):
    hyperparameters: Hyperparameters = Hyperparameters()
    lora: Lora | None = None


class Method(RequestBody):
    """How to tune. Only supervised fine-tuning is supported yet."""

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class CreateJob(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Id
    validation_file: Id | None = None
    suffix: str | None = None
    seed: Seed | None = None
    method: Method | None = None
    hyperparameters: Annotated[
        Hyperparameters | None,
        Field(description="Use `method`.", json_schema_extra={"deprecated": True}),
    ] = None
    metadata: dict[str, str] | None = None
    # Named so that they are refused by name unless they ask for nothing.
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None


class Job(BaseModel):
    """A fine-tuning job. ``base_version``, ``progress`` are beyond the OpenAI API."""

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
    hyperparameters: Hyperparameters
    method: Method
    seed: int
    error: Failure | None
    estimated_finish: int | None = None
    integrations: list[Any] = Field(default_factory=list)
    metadata: dict[str, str] | None
    progress: Progress | None


class JobEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, float] | None


class CheckpointMetrics(BaseModel):
    step: int
    train_loss: float
    valid_loss: float | None


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
    request = pb.CreateJobRequest(
        parent=caller.parent,
        base_model=body.model,
        training_file=_file_name(caller, body.training_file),
        validation_file=_file_name(caller, body.validation_file),
        suffix=body.suffix or "",
        seed=body.seed or 0,
        supervised=_supervised(body),
        metadata=body.metadata or {},
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.tuner.CreateJob, request, _FIELDS)
    return job_object(caller, response.job)


@ROUTER.get("", response_model=ListObject[Job])
async def list_jobs(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    request = pb.ListJobsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
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


@ROUTER.get("/{job_id}/events", response_model=ListObject[JobEvent])
async def list_job_events(
    job_id: str, caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """What happened to the job, newest first."""
    request = pb.ListJobEventsRequest(
        parent=_job_name(caller, job_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.tuner.ListJobEvents, request)
    return page_of([_event(event) for event in response.events], bool(response.next_page_token))


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
    status = STATUS_OF_STATE[job.state]
    hyperparameters = Hyperparameters(
        n_epochs=job.supervised.epochs or "auto",
        batch_size=job.supervised.batch_size or "auto",
        learning_rate_multiplier=job.supervised.learning_rate_multiplier or "auto",
    )
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
        result_files=[job.result_file.rsplit("/", 1)[-1]] if job.result_file else [],
        trained_tokens=job.trained_tokens or None,
        hyperparameters=hyperparameters,
        method=Method(
            type="supervised",
            supervised=Supervised(hyperparameters=hyperparameters, lora=_lora(job.supervised)),
        ),
        seed=job.seed,
        error=failure(job.failure),
        metadata=dict(job.metadata) or None,
        progress=progress(job.progress),
    )


def _event(event: pb.JobEvent) -> JobEvent:
    return JobEvent(
        id=event.id,
        created_at=seconds(event.create_time),
        level=event.level,
        message=event.message,
        type=event.type,
        data=dict(event.metrics) or None,
    )


def _checkpoint(job_id: str, checkpoint: pb.Checkpoint) -> JobCheckpoint:
    # The final checkpoint is the model itself; an earlier one is named as OpenAI does.
    step = "" if checkpoint.final else f":ckpt-step-{checkpoint.step}"
    return JobCheckpoint(
        id=identifier(checkpoint.name) or "",
        created_at=seconds(checkpoint.create_time),
        fine_tuned_model_checkpoint=f"{checkpoint.model}{step}",
        fine_tuning_job_id=job_id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(
            step=checkpoint.step,
            train_loss=checkpoint.train_loss,
            valid_loss=checkpoint.valid_loss if checkpoint.HasField("valid_loss") else None,
        ),
        digest=checkpoint.content.digest,
        final=checkpoint.final,
    )


def _supervised(body: CreateJob) -> pb.SupervisedMethod:
    if body.method is not None and body.hyperparameters is not None:
        raise InvalidArgument(
            "give the hyperparameters within 'method' alone, not also by themselves",
            field="hyperparameters",
        )
    method = body.method or Method(type="supervised")
    chosen = body.hyperparameters or method.supervised.hyperparameters
    auto = {key: 0 if value == "auto" else value for key, value in chosen.model_dump().items()}
    lora = method.supervised.lora
    return pb.SupervisedMethod(
        epochs=auto["n_epochs"],
        batch_size=auto["batch_size"],
        learning_rate_multiplier=auto["learning_rate_multiplier"],
        lora=pb.LoraAdapter(**lora.model_dump(exclude_none=True)) if lora else None,
    )


def _lora(method: pb.SupervisedMethod) -> Lora | None:
    if not method.HasField("lora") or not method.lora.rank:
        return None
    return Lora(rank=method.lora.rank, alpha=method.lora.alpha or None, dropout=method.lora.dropout)


def _job_name(caller: Caller, job_id: str) -> str:
    return caller.name("jobs", job_id, "fine-tuning job")


def _file_name(caller: Caller, file_id: str | None) -> str:
    return f"{caller.parent}/files/{file_id}" if file_id else ""
