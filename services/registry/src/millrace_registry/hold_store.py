"""Holds: versions that stay loaded for a while because somebody asks for them by name."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, select, update

from millrace_registry.domain import HoldRule, Version, VersionState
from millrace_registry.schema import HOLDS, MODELS, VERSIONS
from millrace_registry.transitions import scope
from millrace_registry.upsert import insert

_MOST_STEPS = 256
_FORGET = timedelta(hours=1)


def hold(
    connection: Connection, version: Version, rule: HoldRule, now: datetime
) -> datetime | None:
    """Keep a version loaded; until when, or None: as many of its model as may be are in use.

    Where there are as many as may be, the one that was asked for longest ago makes room.
    """
    _lock_model(connection, version)
    key = {"tenant": version.tenant, "model": version.model, "version": version.number}
    of_model = (HOLDS.c.tenant == version.tenant) & (HOLDS.c.model == version.model)
    others = select(HOLDS).where(
        of_model, HOLDS.c.version != version.number, HOLDS.c.expire_time > now
    )
    found = connection.execute(others.order_by(HOLDS.c.expire_time)).all()
    expires = now + rule.duration
    if len(found) >= rule.maximum:
        # With a maximum of 0 there is none to make room.
        if not found or found[0].expire_time > expires - rule.busy:
            return None
        oldest = of_model & (HOLDS.c.version == found[0].version)
        connection.execute(update(HOLDS).where(oldest).values(expire_time=now))
    statement = insert(connection, HOLDS).values(**key, expire_time=expires)
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_={"expire_time": expires})
    )
    connection.execute(delete(HOLDS).where(HOLDS.c.expire_time < now - _FORGET))
    return expires


def is_held(since: datetime) -> ColumnElement[bool]:
    """Of versions: somebody asked for it, and the hold had not ended at ``since``."""
    holds = select(HOLDS.c.version).where(
        HOLDS.c.tenant == VERSIONS.c.tenant,
        HOLDS.c.model == VERSIONS.c.model,
        HOLDS.c.version == VERSIONS.c.number,
        HOLDS.c.expire_time > since,
    )
    return may_be_held() & holds.exists()


def may_be_held() -> ColumnElement[bool]:
    """``Version.may_be_held``, in SQL."""
    return (VERSIONS.c.state != VersionState.QUARANTINED.value) & (VERSIONS.c.state_reason == "")


def held_now(connection: Connection, now: datetime) -> Collection[tuple[str, str, int]]:
    """(tenant, model, number) of every version that is held."""
    columns = (VERSIONS.c.tenant, VERSIONS.c.model, VERSIONS.c.number)
    query = select(*columns).where(is_held(now))
    return {(row.tenant, row.model, row.number) for row in connection.execute(query)}


def steps_of(connection: Connection, tenant: str, model: str) -> dict[int, int]:
    """Steps of the newest checkpoints, each with the newest version made of it."""
    step = VERSIONS.c.checkpoint["step"].as_string()  # absent for 0, as in a proto's JSON
    query = (
        select(step, VERSIONS.c.number)
        .where(*scope(VERSIONS, tenant, model), may_be_held())
        .order_by(VERSIONS.c.number.desc())
        .limit(_MOST_STEPS)
    )
    newest_first = connection.execute(query).all()
    return {int(row[0] or 0): row[1] for row in reversed(newest_first)}


def _lock_model(connection: Connection, version: Version) -> None:
    """Of two that ask for versions of one model at the same time, one waits."""
    query = select(MODELS.c.id).where(
        MODELS.c.tenant == version.tenant, MODELS.c.id == version.model
    )
    connection.execute(query.with_for_update()).all()
