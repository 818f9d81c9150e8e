"""Rows of recalls: written, read, and asked whether one stands against something."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select, update

from millrace_registry.domain import Version, VersionState
from millrace_registry.lineage_store import ends, nodes_of, upstream
from millrace_registry.recall import Action, Cause, Met, Outcome, Recall, is_recalls
from millrace_registry.schema import (
    RECALL_CAUSES,
    RECALL_LOCKS,
    RECALL_ROWS,
    RECALL_VERSIONS,
    RECALLS,
    VERSIONS,
)
from millrace_registry.upsert import insert

_STANDING = (Action.QUARANTINE, Action.ROLL_BACK)
# What recalls name; a version of equal bytes has a lineage of its own.
CAUSE_KINDS = ("file", "dataset")


def lock(connection: Connection, tenant: str) -> None:
    """Of a tenant's recalls, registrations and facts of lineage, one goes on at a time: none of
    them may miss what another is about to commit. Before any other lock."""
    statement = insert(connection, RECALL_LOCKS).values(tenant=tenant)
    # An update that changes nothing takes the lock, where DO NOTHING would not.
    connection.execute(
        statement.on_conflict_do_update(index_elements=["tenant"], set_={"tenant": tenant})
    )


def add(connection: Connection, recall: Recall, request: dict[str, str | None]) -> None:
    values = {
        "id": recall.id,
        "tenant": recall.tenant,
        "action": recall.action.value,
        "reason": recall.reason,
        "unindexed": list(recall.unindexed),
        "traceparent": recall.traceparent,
        "create_time": recall.create_time,
    }
    connection.execute(RECALLS.insert().values(**values, **request))
    for cause in recall.causes:
        add_cause(connection, recall, cause)
    if recall.stands and not recall.sought.is_empty:
        rows = {"hashes": list(recall.sought.hashes), "file": recall.sought.file}
        connection.execute(RECALL_ROWS.insert().values(recall=recall.id, **rows))


def add_cause(connection: Connection, recall: Recall, cause: Cause) -> bool:
    """Whether it is new."""
    values = {**vars(cause), "recall": recall.id, "hashes": list(cause.hashes)}
    statement = insert(connection, RECALL_CAUSES).values(**values).on_conflict_do_nothing()
    added = connection.execute(statement.returning(RECALL_CAUSES.c.name))
    return added.first() is not None


def add_unindexed(connection: Connection, recall: Recall, names: Iterable[str]) -> None:
    known = sorted({*recall.unindexed, *names})
    statement = update(RECALLS).where(RECALLS.c.id == recall.id)
    connection.execute(statement.values(unindexed=known))


def set_lifted(connection: Connection, recall: Recall, now: datetime, reason: str) -> None:
    statement = update(RECALLS).where(RECALLS.c.id == recall.id)
    connection.execute(statement.values(lift_time=now, lift_reason=reason))


def keep_out(connection: Connection, version: Version, reason: str) -> Version:
    """Quarantine a version that a recall has quarantined: what a person says outlasts the recall.

    Under ``lock``. Where it was no recall, the first reason stays.
    """
    if not is_recalls(version.state_reason):
        return version
    statement = update(VERSIONS).where(
        VERSIONS.c.tenant == version.tenant,
        VERSIONS.c.model == version.model,
        VERSIONS.c.number == version.number,
    )
    connection.execute(statement.values(state_reason=reason))
    return replace(version, state_reason=reason)


def add_met(connection: Connection, recall: Recall, met: Iterable[Met]) -> None:
    """Remember versions that a recall has met; the first time counts."""
    for one in met:
        values = {
            **vars(one),
            "recall": recall.id,
            "state_before": one.state_before.value,
            "outcome": one.outcome.value,
        }
        statement = insert(connection, RECALL_VERSIONS).values(**values)
        connection.execute(statement.on_conflict_do_nothing())


def met_by(connection: Connection, recall: Recall) -> list[Met]:
    order = (RECALL_VERSIONS.c.model, RECALL_VERSIONS.c.number)
    query = select(RECALL_VERSIONS).where(RECALL_VERSIONS.c.recall == recall.id).order_by(*order)
    return [_met_of(row) for row in connection.execute(query)]


def read(connection: Connection, tenant: str, id: str) -> Recall | None:
    """Without the versions; None: there is none."""
    query = select(RECALLS).where(RECALLS.c.tenant == tenant, RECALLS.c.id == id)
    row = connection.execute(query).first()
    return None if row is None else with_causes(connection, recall_of(row))


def with_causes(connection: Connection, recall: Recall) -> Recall:
    order = (RECALL_CAUSES.c.name, RECALL_CAUSES.c.is_heldout)
    query = select(RECALL_CAUSES).where(RECALL_CAUSES.c.recall == recall.id).order_by(*order)
    return replace(recall, causes=tuple(map(_cause_of, connection.execute(query))))


def standing_against(connection: Connection, tenant: str, names: Iterable[str]) -> Recall | None:
    """The strictest recall that stands against what ``names`` were made of, or against them.

    Of several as strict, the first.
    """
    standing = [a.value for a in _STANDING]
    query = (
        select(RECALLS, RECALL_CAUSES.c.name.label("cause"), RECALL_CAUSES.c.digest)
        .join(RECALL_CAUSES, RECALL_CAUSES.c.recall == RECALLS.c.id)
        .where(RECALLS.c.tenant == tenant, RECALLS.c.action.in_(standing))
        .where(RECALLS.c.lift_time.is_(None))
        .where(RECALL_CAUSES.c.is_heldout.is_(False))
        .order_by(RECALLS.c.id)
    )
    rows = connection.execute(query).all()
    if not rows:
        return None
    asked = set(names)
    above = asked | ends(upstream(connection, asked))
    digests = {
        node.digest
        for node in nodes_of(connection, above)
        if node.digest and node.kind in CAUSE_KINDS
    }
    found = [recall_of(row) for row in rows if row.cause in above or row.digest in digests]
    return min(found, key=lambda recall: _STANDING.index(recall.action), default=None)


def recall_of(row: Row[Any]) -> Recall:
    return Recall(
        tenant=row.tenant,
        id=row.id,
        action=Action(row.action),
        reason=row.reason,
        create_time=row.create_time,
        unindexed=tuple(row.unindexed),
        traceparent=row.traceparent,
        lift_time=row.lift_time,
        lift_reason=row.lift_reason or "",
    )


def _cause_of(row: Row[Any]) -> Cause:
    hashes: Sequence[str] = row.hashes
    return Cause(row.name, row.digest, row.is_heldout, row.row_count, tuple(hashes), row.join_time)


def _met_of(row: Row[Any]) -> Met:
    return Met(
        model=row.model,
        number=row.number,
        state_before=VersionState(row.state_before),
        was_live=row.was_live,
        outcome=Outcome(row.outcome),
        successor=row.successor,
        reason_before=row.reason_before or "",
    )
