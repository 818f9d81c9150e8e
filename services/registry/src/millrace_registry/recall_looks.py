"""Where standing recalls have looked for their rows, and where they have not yet.

What may have been learnt from is what lineage names: every file and dataset that a fact told of.
So nothing is missed for good: what was told while no one looked is found at the next look.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from millrace_registry.recall import Cause, Recall, Sought
from millrace_registry.recall_rows import CAUSE_KINDS
from millrace_registry.schema import NODES, RECALL_LOOKS, RECALL_ROWS, RECALLS
from millrace_registry.upsert import insert
from millrace_runtime.database import Database

_LOOKED_INTO_AT_ONCE = 20


@dataclass(frozen=True)
class Search:
    """Rows of a standing recall, and the names of what they are to be looked for in."""

    tenant: str
    recall: str
    sought: Sought
    names: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """What of it holds some of the rows, and of which nobody can say whether it does."""

    causes: tuple[Cause, ...] = ()
    unindexed: tuple[str, ...] = ()


class RecallLooks:
    """What standing recalls have still to look for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def standing(self) -> list[tuple[str, str]]:
        """(tenant, id) of the recalls that stand and know their rows, in the order they were
        made."""
        query = (
            select(RECALLS.c.tenant, RECALLS.c.id)
            .join(RECALL_ROWS, RECALL_ROWS.c.recall == RECALLS.c.id)
            .where(RECALLS.c.lift_time.is_(None))
            .order_by(RECALLS.c.id)
        )
        with self._database.transaction() as connection:
            return [(row.tenant, row.id) for row in connection.execute(query)]

    def next(self, tenant: str, recall: str) -> Search | None:
        """The next part of what a recall is to look into; None: it has looked everywhere, or was
        lifted."""
        with self._database.transaction() as connection:
            names = _not_looked_into(connection, tenant, recall)
            query = (
                select(RECALL_ROWS)
                .join(RECALLS, RECALLS.c.id == RECALL_ROWS.c.recall)
                .where(RECALLS.c.id == recall, RECALLS.c.lift_time.is_(None))
            )
            row = connection.execute(query).first() if names else None
        if row is None:
            return None
        return Search(tenant, recall, Sought(tuple(row.hashes), row.file), names)


def add(connection: Connection, recall: Recall, names: Iterable[str]) -> None:
    """Remember where a recall has looked."""
    for name in sorted(names):
        statement = insert(connection, RECALL_LOOKS).values(recall=recall.id, name=name)
        connection.execute(statement.on_conflict_do_nothing())


def forget(connection: Connection, recall: Recall) -> None:
    """Of a recall that looks no more."""
    for table in (RECALL_LOOKS, RECALL_ROWS):
        connection.execute(delete(table).where(table.c.recall == recall.id))


def _not_looked_into(connection: Connection, tenant: str, recall: str) -> tuple[str, ...]:
    looked = select(RECALL_LOOKS.c.name).where(
        RECALL_LOOKS.c.recall == recall, RECALL_LOOKS.c.name == NODES.c.name
    )
    query = (
        select(NODES.c.name)
        .where(NODES.c.kind.in_(CAUSE_KINDS), ~looked.exists())
        .where(NODES.c.name.startswith(f"tenants/{tenant}/", autoescape=True))
        .order_by(NODES.c.name)
        .limit(_LOOKED_INTO_AT_ONCE)
    )
    return tuple(connection.execute(query).scalars())
