"""Lineage: which resource led to which, filled from the facts that the registry consumes."""

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from millrace_registry.domain import LineageEdge, LineageNode
from millrace_registry.schema import EDGES, NODES
from millrace_registry.upsert import insert
from millrace_runtime.database import Database


class Lineage:
    """Nodes are resource names; an edge leads from cause to effect. Adding twice is once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        nodes: Sequence[LineageNode],
        edges: Sequence[LineageEdge],
        times: dict[str, datetime] | None = None,
    ) -> None:
        """Add what a fact tells; ``times`` says when some of the nodes came to be."""
        with self._database.transaction() as connection:
            add_lineage(connection, nodes, edges, times)

    def find(self, tenant: str, reference: str) -> LineageNode | None:
        """The node of that name, or whose digest begins so, in a tenant."""
        matches = (
            NODES.c.digest.startswith(reference, autoescape=True)
            if reference.startswith("sha256:")
            else NODES.c.name == reference
        )
        query = select(NODES).where(
            matches, NODES.c.name.startswith(f"tenants/{tenant}/", autoescape=True)
        )
        with self._database.transaction() as connection:
            row = connection.execute(query.order_by(NODES.c.name).limit(1)).first()
        return None if row is None else LineageNode(row.name, row.kind, row.digest)

    def around(self, name: str) -> tuple[list[LineageNode], list[LineageEdge]]:
        """All that led to a node, and all that it led to."""
        with self._database.transaction() as connection:
            edges = {
                *_walk(connection, name, lambda at: EDGES.c.effect.in_(at), "cause"),
                *_walk(connection, name, lambda at: EDGES.c.cause.in_(at), "effect"),
            }
            reached = sorted({name, *(e.cause for e in edges), *(e.effect for e in edges)})
            rows = connection.execute(select(NODES).where(NODES.c.name.in_(reached)))
            nodes = [LineageNode(row.name, row.kind, row.digest) for row in rows]
        return nodes, sorted(edges, key=lambda edge: (edge.cause, edge.effect))


def add_lineage(
    connection: Connection,
    nodes: Sequence[LineageNode],
    edges: Sequence[LineageEdge],
    times: dict[str, datetime] | None = None,
) -> None:
    """``Lineage.add``, inside the caller's transaction."""
    # In one order, so that two who add the same rows do not wait for each other.
    for node in sorted(nodes, key=lambda node: node.name):
        _add_node(connection, node, (times or {}).get(node.name))
    for edge in sorted(edges, key=lambda edge: (edge.cause, edge.effect)):
        values = {"cause": edge.cause, "effect": edge.effect}
        connection.execute(insert(connection, EDGES).values(**values).on_conflict_do_nothing())


def checkpoint_time(connection: Connection, name: str) -> datetime | None:
    """When a checkpoint was finished, if its fact has been seen."""
    return connection.execute(select(NODES.c.time).where(NODES.c.name == name)).scalar()


def _add_node(connection: Connection, node: LineageNode, time: datetime | None) -> None:
    values = {"name": node.name, "kind": node.kind, "digest": node.digest, "time": time}
    connection.execute(insert(connection, NODES).values(**values).on_conflict_do_nothing())
    # A node may have been named by another's fact before its own told more.
    known = {key: values[key] for key in ("digest", "time") if values[key]}
    if known:
        connection.execute(update(NODES).where(NODES.c.name == node.name).values(**known))


def _walk(
    connection: Connection, start: str, touching: Callable[[list[str]], object], onward: str
) -> set[LineageEdge]:
    found: set[LineageEdge] = set()
    frontier, seen = [start], {start}
    while frontier:
        rows = connection.execute(select(EDGES).where(touching(frontier)))  # type: ignore[arg-type]
        edges = {LineageEdge(row.cause, row.effect) for row in rows}
        found |= edges
        frontier = [name for e in edges if (name := getattr(e, onward)) not in seen]
        seen.update(frontier)
    return found
