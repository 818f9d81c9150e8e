"""What users do about rollouts, inside the caller's transaction."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, select

from millrace_registry.domain import (
    UNENDED,
    Deployment,
    RequestKey,
    Rollout,
    RolloutState,
    Version,
    VersionState,
)
from millrace_registry.rows import rollout_of, rollout_values
from millrace_registry.schema import ROLLOUTS
from millrace_registry.transitions import (
    RecordFact,
    move_rollout,
    pause_rollout,
    read_model,
    read_version,
    reverse_rollout,
    scope,
    settle_rollout,
    stands_recalled,
)
from millrace_registry.upsert import insert
from millrace_runtime import idempotency, names
from millrace_runtime.errors import FailedPrecondition, NotFound

Change = Callable[[Connection, Rollout], None]


def rollout_to(version: Version, deployment: Deployment, now: datetime, is_late: bool) -> Rollout:
    """A new rollout, SUPERSEDED from the start where it is late."""
    return Rollout(
        tenant=version.tenant,
        id=names.new_id("rollout"),
        deployment=deployment.id,
        model=version.model,
        to_version=version.number,
        create_time=now,
        update_time=now,
        traceparent=version.traceparent,
        state=RolloutState.SUPERSEDED if is_late else RolloutState.PENDING,
        reason="a version of a newer checkpoint was first" if is_late else "",
        finish_time=now if is_late else None,
    )


def require_version(connection: Connection, tenant: str, model: str, number: int) -> Version:
    """
    Raises:
        NotFound: there is no such model, or no such version of it.
    """
    if read_model(connection, tenant, model) is None:
        raise NotFound(f"there is no model {model!r}", reason="MODEL_NOT_FOUND")
    version = read_version(connection, tenant, model, number)
    if version is None:
        raise NotFound(f"there is no version {number} of model {model!r}")
    return version


def create(connection: Connection, made: Rollout, version: Version, request: RequestKey) -> Rollout:
    """Add a rollout that a person asked for; those that wait give way to it. Once a request.

    Raises:
        FailedPrecondition: ``version`` is not to be rolled out now.
        AlreadyExists: the request id was used otherwise.
    """
    if earlier := idempotency.find_made(
        connection, ROLLOUTS, made.tenant, request.id, request.digest
    ):
        query = select(ROLLOUTS).where(ROLLOUTS.c.id == earlier)
        return rollout_of(connection.execute(query).one())
    unended = lock_unended(connection, made.tenant, made.model)
    _require_free(version, unended)
    if stands_recalled(connection, version):
        raise FailedPrecondition(
            f"version {version.number} of model {version.model!r} may not be served: it learnt "
            f"from what was recalled ({version.state_reason})",
            reason="VERSION_RECALLED",
        )
    values = {**rollout_values(made), **idempotency.values(request.id, request.digest)}
    connection.execute(insert(connection, ROLLOUTS).values(**values))
    for waiting in unended:
        if waiting.state == RolloutState.PENDING:
            move_rollout(connection, waiting, _superseded(waiting, made.create_time))
    return made


def _require_free(version: Version, unended: Sequence[Rollout]) -> None:
    what = f"version {version.number} of model {version.model!r}"
    if version.state == VersionState.SERVING:
        raise FailedPrecondition(f"{what} serves already", reason="VERSION_SERVES")
    known = next((one for one in unended if one.to_version == version.number), None)
    if known is not None:
        raise FailedPrecondition(
            f"{what} is being rolled out already, by {known.id}", reason="ROLLOUT_EXISTS"
        )
    # A REGISTERED one has a reason where no engine here runs it; a RETIRED one was reversed.
    may_not = version.state == VersionState.REGISTERED and version.state_reason
    if version.state == VersionState.QUARANTINED or may_not:
        raise FailedPrecondition(
            f"{what} may not be served: {version.state_reason}", reason="VERSION_STATE"
        )


def _superseded(rollout: Rollout, now: datetime) -> Rollout:
    return replace(
        rollout,
        state=RolloutState.SUPERSEDED,
        paused=False,
        reason="a rollout that was asked for by hand came before its turn",
        update_time=now,
        finish_time=now,
    )


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
