"""Changes of state that users and the controller both make, inside the caller's transaction."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import CHAMPION, Model, Rollout, RolloutState, Version, VersionState
from millrace_registry.lineage_store import checkpoint_time
from millrace_registry.rows import model_of, rollout_values, version_of
from millrace_registry.schema import ALIASES, MODELS, ROLLOUTS, VERSIONS

RecordFact = Callable[[Connection, str, Message, str], None]
"""Adds a fact to a transaction: (connection, tenant, data, traceparent)."""

EVERY = "-"


def read_model(connection: Connection, tenant: str, id: str) -> Model | None:
    """None when there is none, or it was deleted."""
    query = select(MODELS).where(MODELS.c.tenant == tenant, MODELS.c.id == id)
    row = connection.execute(query.where(MODELS.c.is_deleted.is_(False))).first()
    return None if row is None else model_of(row, aliases_of(connection, tenant, id))


def read_version(connection: Connection, tenant: str, model: str, number: int) -> Version | None:
    row = connection.execute(select(VERSIONS).where(_is_version(tenant, model, number))).first()
    return None if row is None else version_of(row)


def write_alias(connection: Connection, tenant: str, model: str, alias: str, version: int) -> None:
    keys = {"tenant": tenant, "model": model, "alias": alias}
    connection.execute(delete(ALIASES).where(*(ALIASES.c[k] == v for k, v in keys.items())))
    if version:
        connection.execute(ALIASES.insert().values(**keys, version=version))


def set_version_state(
    connection: Connection, version: tuple[str, str, int], state: VersionState, **values: Any
) -> None:
    """Change a version's state; a quarantined one stays so for good."""
    connection.execute(
        update(VERSIONS)
        .where(_is_version(*version), VERSIONS.c.state != VersionState.QUARANTINED.value)
        .values(state=state.value, **values)
    )


def quarantine_version(
    connection: Connection, version: Version, reason: str, now: datetime
) -> None:
    """Mark a version, and let the newest retired one serve in its place if it served."""
    key = (version.tenant, version.model, version.number)
    set_version_state(connection, key, VersionState.QUARANTINED, state_reason=reason)
    serves = (
        (MODELS.c.tenant == version.tenant)
        & (MODELS.c.id == version.model)
        & (MODELS.c.serving_version == version.number)
    )
    if connection.execute(select(MODELS.c.id).where(serves)).first() is None:
        return
    retired = VERSIONS.c.state == VersionState.RETIRED.value
    query = select(func.max(VERSIONS.c.number)).where(
        *scope(VERSIONS, version.tenant, version.model), retired, VERSIONS.c.state_reason == ""
    )
    successor = connection.execute(query).scalar_one() or 0
    connection.execute(update(MODELS).where(serves).values(serving_version=successor))
    if successor:
        serving = (version.tenant, version.model, successor)
        set_version_state(connection, serving, VersionState.SERVING, retire_time=None)


def settle_rollout(
    connection: Connection, rollout: Rollout, reason: str, now: datetime, record: RecordFact
) -> None:
    """The new version serves, the one before it retires, and ``champion`` means the new one."""
    version = read_version(connection, rollout.tenant, rollout.model, rollout.to_version)
    assert version is not None, "a rollout leads to a version"
    ended = {"state": RolloutState.SETTLED.value, "traffic_share": 1.0, "reason": reason}
    _write_rollout(connection, rollout, finish_time=now, update_time=now, **ended)
    new = (rollout.tenant, rollout.model, rollout.to_version)
    set_version_state(connection, new, VersionState.SERVING, state_reason="")
    if rollout.from_version:
        old = (rollout.tenant, rollout.model, rollout.from_version)
        set_version_state(connection, old, VersionState.RETIRED, retire_time=now)
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
    ended = {"state": RolloutState.REVERSED.value, "traffic_share": 0.0, "reason": reason}
    _write_rollout(connection, rollout, finish_time=now, update_time=now, **ended)
    key = (rollout.tenant, rollout.model, rollout.to_version)
    set_version_state(
        connection, key, VersionState.RETIRED, state_reason=f"reversed: {reason}", retire_time=now
    )
    fact = events_pb2.RolloutReversed(
        rollout=rollout.name,
        model=rollout.model,
        to_version=rollout.to_version,
        checkpoint=version.checkpoint_name,
        reason=reason,
    )
    record(connection, rollout.tenant, fact, rollout.traceparent)


def write_rollout(connection: Connection, rollout: Rollout) -> None:
    """Write a rollout as it is now."""
    values = rollout_values(rollout)
    connection.execute(update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id).values(**values))


def _write_rollout(connection: Connection, rollout: Rollout, **values: Any) -> None:
    connection.execute(update(ROLLOUTS).where(ROLLOUTS.c.id == rollout.id).values(**values))


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
