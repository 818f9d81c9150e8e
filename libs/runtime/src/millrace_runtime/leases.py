"""Work as a row with a lease and an epoch, so that one worker at a time can write.

A worker claims a row, which raises its epoch, and renews while it works. When it stops
renewing, anyone may claim the row again under a higher epoch, and every write of the old
worker is refused in SQL (``fenced``). See Kleppmann, "How to do distributed locking" (2016)
for why the fencing token, not the lease, is what makes this safe.

    LeaseLost   the row's epoch is not the writer's: somebody else has taken the work over
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Integer,
    String,
    Table,
    and_,
    func,
    or_,
    select,
    update,
)

from millrace_runtime import owner as owner_of_lease
from millrace_runtime.database import UtcDateTime

# What workers of this process look for, by table.
_CLAIMED: dict[str, tuple[Table, ColumnElement[bool]]] = {}


class LeaseLost(Exception):
    """The work has been taken over, or is no longer there; stop, and write nothing."""


@dataclass(frozen=True)
class Lease:
    """The right to work on one row until ``expires``, under ``epoch``."""

    id: str
    epoch: int
    expires: datetime


def lease_columns() -> tuple[Column[Any], ...]:
    """The columns that a table of work needs; its primary key must be ``id``."""
    return (
        Column("epoch", Integer, nullable=False, default=0, server_default="0"),
        Column("lease_owner", String(128)),
        Column("lease_expires", UtcDateTime),
    )


def claim(
    connection: Connection,
    table: Table,
    claimable: ColumnElement[bool],
    *,
    owner: str,
    now: datetime,
    duration: timedelta,
    preferred: ColumnElement[bool] | None = None,
) -> Lease | None:
    """Take the oldest row that is ``claimable`` and not under a live lease, or ``None``.

    A lease lives until it runs out, or until its owner is seen to have ended (``owner.py``).
    Rows that are ``preferred`` go before all others, however old those are.
    """
    _CLAIMED[table.name] = (table, claimable)
    free = or_(
        table.c.lease_expires.is_(None),
        table.c.lease_expires < now,
        table.c.lease_owner.in_(_ended_owners(connection, table, now)),
    )
    oldest = (
        select(table.c.id, table.c.epoch)
        .where(and_(claimable, free))
        .order_by(*(() if preferred is None else (preferred.desc(),)), table.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(oldest).first()
    if row is None:
        return None
    lease = Lease(row.id, row.epoch + 1, now + duration)
    connection.execute(
        update(table)
        .where(table.c.id == row.id, table.c.epoch == row.epoch)
        .values(epoch=lease.epoch, lease_owner=owner, lease_expires=lease.expires)
    )
    return lease


def count_abandoned(connection: Connection, before: datetime) -> int:
    """How many claimable rows have a lease that ended ``before``, and wait for a taker still.

    It knows the tables and conditions that this process has claimed with.
    """
    return sum(
        int(
            connection.execute(
                select(func.count())
                .select_from(table)
                .where(claimable, table.c.lease_expires < before)
            ).scalar_one()
        )
        for table, claimable in tuple(_CLAIMED.values())
    )


def _ended_owners(connection: Connection, table: Table, now: datetime) -> list[str]:
    live = select(table.c.lease_owner).where(table.c.lease_expires >= now).distinct()
    owners = connection.execute(live).scalars()
    return [name for name in owners if name is not None and owner_of_lease.has_ended(name)]


def renew(
    connection: Connection, table: Table, lease: Lease, *, now: datetime, duration: timedelta
) -> Lease:
    """Extend ``lease`` to ``now + duration``.

    Raises:
        LeaseLost: the row has a higher epoch, or was given back: a renewal that comes late must
            not keep others from it.
    """
    expires = now + duration
    held = fenced(table, lease).where(table.c.lease_owner.is_not(None))
    require_held(connection.execute(held.values(lease_expires=expires)), lease)
    return Lease(lease.id, lease.epoch, expires)


def release(connection: Connection, table: Table, lease: Lease) -> None:
    """Give the row back at once; nothing happens when it was lost already."""
    connection.execute(fenced(table, lease).values(lease_owner=None, lease_expires=None))


def put_off(connection: Connection, table: Table, lease: Lease, until: datetime) -> None:
    """Give the row back, to be claimed after ``until`` and no sooner.

    The epoch rises, so that whoever still renews the lease cannot hold the row any longer.

    Raises:
        LeaseLost: the row has a higher epoch.
    """
    given_back = fenced(table, lease).values(
        epoch=lease.epoch + 1, lease_owner=None, lease_expires=until
    )
    require_held(connection.execute(given_back), lease)


def fenced(table: Table, lease: Lease) -> Any:
    """An UPDATE of the leased row that matches nothing once the epoch has risen."""
    return update(table).where(table.c.id == lease.id, table.c.epoch == lease.epoch)


def require_held(result: CursorResult[Any], lease: Lease) -> None:
    """Check that a fenced write happened.

    Raises:
        LeaseLost: it matched no row.
    """
    if result.rowcount != 1:
        raise LeaseLost(f"{lease.id} is no longer ours (epoch {lease.epoch})")
