"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row

from millrace_tuner.domain import (
    Checkpoint,
    Content,
    Failure,
    Job,
    JobEvent,
    JobState,
    Outcome,
    Plan,
    Progress,
    RecordedEvent,
)

_SERVING = "SERVING"
PLANS = TypeAdapter(Plan)


def job_values(job: Job) -> dict[str, Any]:
    """All columns of a job but those of its lease and request."""
    return {
        "id": job.id,
        "tenant": job.tenant,
        "plan": PLANS.dump_python(job.plan, mode="json"),
        "tuned_model": job.tuned_model,
        "state": job.state,
        "progress": asdict(job.progress),
        "failure_reason": job.failure.reason if job.failure else None,
        "failure_message": job.failure.message if job.failure else None,
        **_outcome_values(job.outcome),
        "trained_tokens": job.trained_tokens,
        "result_file": job.result_file,
        "trials_file": job.trials_file,
        "attempts": job.attempts,
        "metadata": dict(job.metadata),
        "traceparent": job.traceparent,
        "create_time": job.create_time,
        "update_time": job.update_time,
        "start_time": job.start_time,
        "validate_time": job.validate_time,
        "trained_time": job.trained_time,
        "finish_time": job.finish_time,
    }


def _outcome_values(outcome: Outcome | None) -> dict[str, str | None]:
    if outcome is None:
        return {"outcome_reason": None, "outcome_message": None}
    if outcome.failure is None:
        return {"outcome_reason": _SERVING, "outcome_message": None}
    return {
        "outcome_reason": outcome.failure.reason,
        "outcome_message": outcome.failure.message,
    }


def job_of(row: Row[Any]) -> Job:
    return Job(
        tenant=row.tenant,
        id=row.id,
        plan=plan_of(row.plan),
        tuned_model=row.tuned_model,
        create_time=row.create_time,
        update_time=row.update_time,
        state=JobState(row.state),
        progress=Progress(**row.progress),
        failure=Failure(row.failure_reason, row.failure_message) if row.failure_reason else None,
        outcome=_outcome_of(row),
        start_time=row.start_time,
        validate_time=row.validate_time,
        trained_time=row.trained_time,
        finish_time=row.finish_time,
        trained_tokens=row.trained_tokens,
        result_file=row.result_file,
        trials_file=row.trials_file,
        attempts=row.attempts,
        metadata=row._mapping["metadata"],
        traceparent=row.traceparent,
    )


def _outcome_of(row: Row[Any]) -> Outcome | None:
    if row.outcome_reason is None:
        return None
    if row.outcome_reason == _SERVING:
        return Outcome()
    return Outcome(Failure(row.outcome_reason, row.outcome_message))


def plan_of(document: dict[str, Any]) -> Plan:
    """A plan as it was written; one without a method is of the time when there was only one."""
    return PLANS.validate_python({"method": {"kind": "supervised"}, **document})


def checkpoint_values(checkpoint: Checkpoint) -> dict[str, Any]:
    values = asdict(checkpoint)
    return {**values.pop("content"), **values}


def checkpoint_of(row: Row[Any]) -> Checkpoint:
    values = dict(row._mapping)
    content = Content(values.pop("uri"), values.pop("digest"), values.pop("size_bytes"))
    return Checkpoint(content=content, **values)


def event_of(row: Row[Any]) -> RecordedEvent:
    event = JobEvent(row.message, row.key, row.level, row.type, row.metrics)
    return RecordedEvent(row.sequence, row.id, row.create_time, event)
