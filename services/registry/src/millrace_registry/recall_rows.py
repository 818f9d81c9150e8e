"""Rows of recalls: written, read, and asked whether one stands against something."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, select

from millrace_registry.domain import VersionState
from millrace_registry.lineage_store import ends, nodes_of, upstream
from millrace_registry.recall import Action, Cause, Met, Outcome, Recall
from millrace_registry.schema import RECALL_CAUSES, RECALL_LOCKS, RECALL_VERSIONS, RECALLS
from millrace_registry.upsert import insert

_STANDING = (Action.QUARANTINE, Action.ROLL_BACK)
# What recalls name; a version of equal bytes has a lineage of its own.
_CAUSES = ("file", "dataset")


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
        values = {**vars(cause), "recall": recall.id, "hashes": list(cause.hashes)}
        connection.execute(RECALL_CAUSES.insert().values(**values))


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
        .where(RECALL_CAUSES.c.is_heldout.is_(False))
        .order_by(RECALLS.c.id)
    )
    rows = connection.execute(query).all()
    if not rows:
        return None
    asked = set(names)
    above = asked | ends(upstream(connection, asked))
    digests = {
        node.digest for node in nodes_of(connection, above) if node.digest and node.kind in _CAUSES
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
    )


def _cause_of(row: Row[Any]) -> Cause:
    hashes: Sequence[str] = row.hashes
    return Cause(row.name, row.digest, row.is_heldout, row.row_count, tuple(hashes))


def _met_of(row: Row[Any]) -> Met:
    return Met(
        model=row.model,
        number=row.number,
        state_before=VersionState(row.state_before),
        was_live=row.was_live,
        outcome=Outcome(row.outcome),
        successor=row.successor,
    )
