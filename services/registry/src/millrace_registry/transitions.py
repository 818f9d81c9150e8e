"""Changes of state that users and the controller both make, inside the caller's transaction.

Rows are locked in one order, so that no two of them wait for each other: rollouts, versions,
models, aliases.

RolloutChanged   a rollout is no longer in the state that it was read in
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import (
    CHAMPION,
    EVERY,
    UNENDED,
    Interface,
    Model,
    Rollout,
    RolloutState,
    Version,
    VersionState,
)
from millrace_registry.lineage_store import checkpoint_time
from millrace_registry.rows import model_of, rollout_values, version_of
from millrace_registry.schema import ALIASES, MODELS, RECALL_VERSIONS, RECALLS, ROLLOUTS, VERSIONS

RecordFact = Callable[[Connection, str, Message, str], None]
"""Adds a fact to a transaction: (connection, tenant, data, traceparent)."""


class RolloutChanged(Exception):
    """Somebody else has moved the rollout on since it was read; look at it again."""


def read_model(connection: Connection, tenant: str, id: str) -> Model | None:
    """None when there is none, or it was deleted."""
    query = select(MODELS).where(MODELS.c.tenant == tenant, MODELS.c.id == id)
    row = connection.execute(query.where(MODELS.c.is_deleted.is_(False))).first()
    return None if row is None else model_of(row, aliases_of(connection, tenant, id))


def read_version(connection: Connection, tenant: str, model: str, number: int) -> Version | None:
    row = connection.execute(select(VERSIONS).where(_is_version(tenant, model, number))).first()
    return None if row is None else version_of(row)


def is_overtaken(connection: Connection, version: Version) -> bool:
    """Whether a version of a newer checkpoint of the model serves already, or is about to.

    Artifacts arrive in any order. Of one run the step says which is newer, since two processes
    with clocks of their own may have saved them; else the id, which sorts by when it was made.
    """
    stands = (*UNENDED, RolloutState.SETTLED.value)
    query = (
        select(VERSIONS.c.checkpoint)
        .join(
            ROLLOUTS,
            (ROLLOUTS.c.tenant == VERSIONS.c.tenant)
            & (ROLLOUTS.c.model == VERSIONS.c.model)
            & (ROLLOUTS.c.to_version == VERSIONS.c.number),
        )
        .where(*scope(VERSIONS, version.tenant, version.model))
        .where(VERSIONS.c.state != VersionState.QUARANTINED.value)
        .where(ROLLOUTS.c.state.in_(stands))
    )
    others = connection.execute(query).scalars()
    return any(_is_newer(other, version.checkpoint) for other in others)


def _is_newer(other: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Compare two checkpoints, as ``compressor.v1.Checkpoint`` in JSON has them."""
    run, _, other_id = other["name"].rpartition("/")
    own_run, _, own_id = own["name"].rpartition("/")
    if run == own_run:
        return int(other.get("step", 0)) > int(own.get("step", 0))
    return str(other_id) > str(own_id)


def write_alias(connection: Connection, tenant: str, model: str, alias: str, version: int) -> None:
    keys = {"tenant": tenant, "model": model, "alias": alias}
    connection.execute(delete(ALIASES).where(*(ALIASES.c[k] == v for k, v in keys.items())))
    if version:
        connection.execute(ALIASES.insert().values(**keys, version=version))


def set_version_state(
    connection: Connection, version: tuple[str, str, int], state: VersionState, **values: Any
) -> None:
    """Change a version's state; a quarantined one stays so (but ``recall_lift``)."""
    connection.execute(
        update(VERSIONS)
        .where(_is_version(*version), VERSIONS.c.state != VersionState.QUARANTINED.value)
        .values(state=state.value, **values)
    )


def write_interface(
    connection: Connection, version: tuple[str, str, int], interface: Interface
) -> None:
    """Keep what clients must know of a version."""
    values = {"interface": asdict(interface)}
    connection.execute(update(VERSIONS).where(_is_version(*version)).values(**values))


def write_measurements(
    connection: Connection, version: tuple[str, str, int], measurements: Mapping[str, object]
) -> None:
    """Replace what was measured of a version."""
    values = {"measurements": dict(measurements)}
    connection.execute(update(VERSIONS).where(_is_version(*version)).values(**values))


def quarantine_version(
    connection: Connection, version: Version, reason: str, now: datetime
) -> None:
    """Mark a version, and let the newest retired one serve in its place if it served."""
    key = (version.tenant, version.model, version.number)
    set_version_state(connection, key, VersionState.QUARANTINED, state_reason=reason)
    serve_instead(connection, version, successor_of(connection, version.tenant, version.model))


def successor_of(connection: Connection, tenant: str, model: str) -> int:
    """The newest version that served before, and was neither reversed nor recalled; 0: none."""
    retired = VERSIONS.c.state == VersionState.RETIRED.value
    query = select(func.max(VERSIONS.c.number)).where(
        *scope(VERSIONS, tenant, model), retired, VERSIONS.c.state_reason == "", ~is_recalled()
    )
    return connection.execute(query).scalar_one() or 0


def is_recalled() -> ColumnElement[bool]:
    """Of versions: a recall stands against it, and it may not come to serve again."""
    recalled = (
        select(RECALLS.c.id)
        .join(RECALL_VERSIONS, RECALL_VERSIONS.c.recall == RECALLS.c.id)
        .where(RECALLS.c.action != "REPORT", RECALLS.c.lift_time.is_(None))
        .where(RECALLS.c.tenant == VERSIONS.c.tenant)
        .where(RECALL_VERSIONS.c.model == VERSIONS.c.model)
        .where(RECALL_VERSIONS.c.number == VERSIONS.c.number)
    )
    return recalled.exists()


def stands_recalled(connection: Connection, version: Version) -> bool:
    """Whether a recall stands against a version."""
    key = (version.tenant, version.model, version.number)
    query = select(VERSIONS.c.number).where(_is_version(*key), is_recalled())
    return connection.execute(query).first() is not None


def serve_instead(connection: Connection, version: Version, successor: int) -> None:
    """Let ``successor`` serve (0: none) if ``version`` did; ``champion`` means it too."""
    serves = (
        (MODELS.c.tenant == version.tenant)
        & (MODELS.c.id == version.model)
        & (MODELS.c.serving_version == version.number)
    )
    served = update(MODELS).where(serves).values(serving_version=successor)
    if connection.execute(served).rowcount == 0:
        return
    if successor:
        serving = (version.tenant, version.model, successor)
        set_version_state(connection, serving, VersionState.SERVING, retire_time=None)
    write_alias(connection, version.tenant, version.model, CHAMPION, successor)


def settle_rollout(
    connection: Connection, rollout: Rollout, reason: str, now: datetime, record: RecordFact
) -> None:
    """The new version serves, the one before it retires, and ``champion`` means the new one."""
    version = read_version(connection, rollout.tenant, rollout.model, rollout.to_version)
    assert version is not None, "a rollout leads to a version"
    _end(connection, rollout, RolloutState.SETTLED, 1.0, reason, now)
    retire_serving(connection, rollout.tenant, rollout.model, now)
    new = (rollout.tenant, rollout.model, rollout.to_version)
    set_version_state(connection, new, VersionState.SERVING, state_reason="", retire_time=None)
    connection.execute(
        update(MODELS)
        .where(MODELS.c.tenant == rollout.tenant, MODELS.c.id == rollout.model)
        .values(serving_version=rollout.to_version)
    )
    write_alias(connection, rollout.tenant, rollout.model, CHAMPION, rollout.to_version)
    began = checkpoint_time(connection, version.checkpoint_name) or version.create_time
    fact = events_pb2.RolloutSettled(
        rollout=rollout.name,
        model=rollout.model,
        to_version=rollout.to_version,
        checkpoint=version.checkpoint_name,
        checkpoint_to_settled_seconds=(now - began).total_seconds(),
    )
    record(connection, rollout.tenant, fact, rollout.traceparent)


def reverse_rollout(
    connection: Connection, rollout: Rollout, reason: str, now: datetime, record: RecordFact
) -> None:
    """The version before serves alone again; the reason stays with the new one."""
    version = read_version(connection, rollout.tenant, rollout.model, rollout.to_version)
    assert version is not None, "a rollout leads to a version"
    _end(connection, rollout, RolloutState.REVERSED, 0.0, reason, now)
    key = (rollout.tenant, rollout.model, rollout.to_version)
    if version.state == VersionState.ROLLING_OUT or version.retire_time is None:
        # Else it has served before, and this rollout to it had not begun: it is as good as it was.
        set_version_state(
            connection,
            key,
            VersionState.RETIRED,
            state_reason=f"reversed: {reason}",
            retire_time=now,
        )
    fact = events_pb2.RolloutReversed(
        rollout=rollout.name,
        model=rollout.model,
        to_version=rollout.to_version,
        checkpoint=version.checkpoint_name,
        reason=reason,
    )
    record(connection, rollout.tenant, fact, rollout.traceparent)


def pause_rollout(
    connection: Connection, rollout: Rollout, paused: bool, now: datetime, record: RecordFact
) -> None:
    """Keep a rollout where it is, or let it go on; nothing when it is so already."""
    if rollout.paused == paused:
        return
    move_rollout(connection, rollout, replace(rollout, paused=paused, update_time=now))
    kind = events_pb2.RolloutPaused if paused else events_pb2.RolloutResumed
    fact = kind(rollout=rollout.name, model=rollout.model, to_version=rollout.to_version)
    record(connection, rollout.tenant, fact, rollout.traceparent)


def retire_serving(connection: Connection, tenant: str, model: str, now: datetime) -> None:
    """Retire whatever serves: after a quarantine that need not be where a rollout started."""
    serving = VERSIONS.c.state == VersionState.SERVING.value
    statement = update(VERSIONS).where(*scope(VERSIONS, tenant, model), serving)
    connection.execute(statement.values(state=VersionState.RETIRED.value, retire_time=now))


def move_rollout(connection: Connection, before: Rollout, after: Rollout) -> None:
    """Write what has become of a rollout.

    Raises:
        RolloutChanged: it is not in the state that ``before`` was read in: a user may have ended
            or paused it while the controller looked, or another endpoint's controller moved it.
    """
    unchanged = (
        (ROLLOUTS.c.id == before.id)
        & (ROLLOUTS.c.state == before.state.value)
        & (ROLLOUTS.c.step == before.step)
        & (ROLLOUTS.c.paused.is_(before.paused))
    )
    statement = update(ROLLOUTS).where(unchanged).values(**rollout_values(after))
    if connection.execute(statement).rowcount != 1:
        raise RolloutChanged(f"{before.name} is no longer {before.state}, or was paused or resumed")


def _end(
    connection: Connection,
    rollout: Rollout,
    state: RolloutState,
    share: float,
    reason: str,
    now: datetime,
) -> None:
    ended = replace(
        rollout,
        state=state,
        paused=False,
        traffic_share=share,
        mirror_share=0.0,
        reason=reason,
        finish_time=now,
        update_time=now,
    )
    move_rollout(connection, rollout, ended)


def aliases_of(connection: Connection, tenant: str, model: str) -> dict[str, int]:
    query = select(ALIASES).where(ALIASES.c.tenant == tenant, ALIASES.c.model == model)
    return {row.alias: row.version for row in connection.execute(query)}


def _is_version(tenant: str, model: str, number: int) -> ColumnElement[bool]:
    return (
        (VERSIONS.c.tenant == tenant) & (VERSIONS.c.model == model) & (VERSIONS.c.number == number)
    )


def scope(table: Table, tenant: str, model: str) -> list[ColumnElement[bool]]:
    conditions = []
    if tenant != EVERY:
        conditions.append(table.c.tenant == tenant)
    if model != EVERY:
        conditions.append(table.c.model == model)
    return conditions
