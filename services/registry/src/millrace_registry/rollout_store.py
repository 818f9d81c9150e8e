"""What users do about rollouts, inside the caller's transaction."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from millrace_registry.domain import UNENDED, Rollout
from millrace_registry.rows import rollout_of
from millrace_registry.schema import ROLLOUTS
from millrace_registry.transitions import (
    RecordFact,
    pause_rollout,
    reverse_rollout,
    scope,
    settle_rollout,
)

Change = Callable[[Connection, Rollout], None]


def promotion(reason: str, now: datetime, record: RecordFact) -> Change:
    """Settles a rollout whose new version answers, and leaves any other as it is."""

    def settle(connection: Connection, rollout: Rollout) -> None:
        if rollout.can_be_promoted:
            settle_rollout(connection, rollout, reason, now, record)

    return settle


def reversal(reason: str, now: datetime, record: RecordFact) -> Change:
    def reverse(connection: Connection, rollout: Rollout) -> None:
        reverse_rollout(connection, rollout, reason, now, record)

    return reverse


def pause(paused: bool, now: datetime, record: RecordFact) -> Change:
    """Pauses a rollout, or lets it go on."""

    def change(connection: Connection, rollout: Rollout) -> None:
        pause_rollout(connection, rollout, paused, now, record)

    return change


def change(connection: Connection, tenant: str, id: str, how: Change) -> Rollout | None:
    """Change a rollout that has not ended, and read it again; None: there is none."""
    query = select(ROLLOUTS).where(ROLLOUTS.c.tenant == tenant, ROLLOUTS.c.id == id)
    row = connection.execute(query.with_for_update()).first()
    if row is None:
        return None
    found = rollout_of(row)
    if not found.state.has_ended:
        how(connection, found)
    return rollout_of(connection.execute(query).one())


def lock_unended(connection: Connection, tenant: str, model: str) -> Sequence[Rollout]:
    """Rollouts of a model that have not ended, kept from the controller until the commit."""
    query = select(ROLLOUTS).where(*scope(ROLLOUTS, tenant, model), ROLLOUTS.c.state.in_(UNENDED))
    return [rollout_of(row) for row in connection.execute(query.with_for_update()).all()]
