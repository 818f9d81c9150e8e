"""Rows of searches for settings as values, and back."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from millrace_registry.schema import SERVING_TRIALS
from millrace_registry.tuning.resource import (
    PLAN,
    RESULT,
    WISH,
    Failure,
    Progress,
    ServingTuning,
    State,
)
from millrace_registry.tuning.trial import Trial, document_of, trial_of
from millrace_registry.upsert import insert


def values_of(tuning: ServingTuning) -> dict[str, Any]:
    """Column values of a search that is new."""
    return {
        "id": tuning.id,
        "tenant": tuning.tenant,
        "deployment": tuning.deployment,
        "model": tuning.model,
        "active_deployment": tuning.deployment,
        "state": tuning.state.value,
        "wish": WISH.dump_python(tuning.wish, mode="json"),
        "progress": asdict(tuning.progress),
        "attempts": 0,
        "traceparent": tuning.traceparent,
        "create_time": tuning.create_time,
    }


def tuning_of(row: Row[Any], trials: Sequence[Trial] = ()) -> ServingTuning:
    return ServingTuning(
        tenant=row.tenant,
        id=row.id,
        deployment=row.deployment,
        model=row.model,
        wish=WISH.validate_python(row.wish),
        create_time=row.create_time,
        state=State(row.state),
        progress=Progress(**row.progress),
        failure=Failure(row.failure_reason, row.failure_message) if row.failure_reason else None,
        plan=PLAN.validate_python(row.plan) if row.plan else None,
        trials=tuple(trials),
        result=RESULT.validate_python(row.result) if row.result else None,
        traceparent=row.traceparent,
        start_time=row.start_time,
        finish_time=row.finish_time,
    )


def trials_of(connection: Connection, tuning: str) -> list[Trial]:
    """What was measured in a search, by number."""
    table = SERVING_TRIALS
    query = select(table.c.document).where(table.c.tuning == tuning).order_by(table.c.number)
    return [trial_of(document) for document in connection.execute(query).scalars()]


def put_trial(connection: Connection, tuning: str, trial: Trial) -> None:
    """Keep a look; it takes the place of one with its number, and of those after it."""
    document = document_of(trial)
    later = (SERVING_TRIALS.c.tuning == tuning) & (SERVING_TRIALS.c.number > trial.number)
    connection.execute(delete(SERVING_TRIALS).where(later))
    added = insert(connection, SERVING_TRIALS).values(
        tuning=tuning, number=trial.number, document=document
    )
    connection.execute(
        added.on_conflict_do_update(
            index_elements=["tuning", "number"], set_={"document": document}
        )
    )
