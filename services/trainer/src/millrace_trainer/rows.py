"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from millrace_trainer.domain import Checkpoint, Content, Failure, Metric, Progress, Run, State


def run_values(run: Run) -> dict[str, Any]:
    """Column values of a run that is new."""
    return {
        "id": run.id,
        "tenant": run.tenant,
        "model": run.model,
        "dataset_name": run.dataset_name,
        "dataset": asdict(run.dataset) if run.dataset else None,
        "initial_checkpoint": run.initial_checkpoint,
        "architecture": dict(run.architecture),
        "hyperparameters": dict(run.hyperparameters),
        "state": run.state.value,
        "has_started": run.has_started,
        "progress": asdict(run.progress),
        "parameter_count": run.parameter_count,
        "attempts": 0,
        "traceparent": run.traceparent,
        "create_time": run.create_time,
        "update_time": run.update_time,
    }


def run_of(row: Row[Any]) -> Run:
    return Run(
        tenant=row.tenant,
        id=row.id,
        model=row.model,
        dataset_name=row.dataset_name,
        architecture=row.architecture,
        hyperparameters=row.hyperparameters,
        create_time=row.create_time,
        update_time=row.update_time,
        traceparent=row.traceparent,
        initial_checkpoint=row.initial_checkpoint,
        dataset=Content(**row.dataset) if row.dataset else None,
        state=State(row.state),
        progress=Progress(**row.progress),
        failure=Failure(row.failure_reason, row.failure_message) if row.failure_reason else None,
        parameter_count=row.parameter_count,
        has_started=row.has_started,
    )


def checkpoint_values(checkpoint: Checkpoint) -> dict[str, Any]:
    return asdict(checkpoint)


def checkpoint_of(row: Row[Any]) -> Checkpoint:
    values = dict(row._mapping)
    return Checkpoint(
        **{**values, "content": Content(**row.content), "dataset": Content(**row.dataset)}
    )


def metric_of(row: Row[Any]) -> Metric:
    return Metric(row.step, row.time, row.metrics)
