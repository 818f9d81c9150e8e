"""Lineage: which resource led to which, filled from the facts that the registry consumes."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import Column, Connection, select, update

from millrace_registry.domain import LineageEdge, LineageNode
from millrace_registry.schema import EDGES, NODES
from millrace_registry.upsert import insert
from millrace_runtime.database import Database

_MOST_NAMES = 10_000


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
                *upstream(connection, [name]),
                *downstream(connection, [name]),
            }
            nodes = nodes_of(connection, {name, *ends(edges)})
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


def upstream(connection: Connection, names: Iterable[str]) -> set[LineageEdge]:
    """All that led to any of them."""
    return _walk(connection, names, EDGES.c.effect, "cause")


def downstream(connection: Connection, names: Iterable[str]) -> set[LineageEdge]:
    """All that any of them led to."""
    return _walk(connection, names, EDGES.c.cause, "effect")


def ends(edges: Iterable[LineageEdge]) -> set[str]:
    """Names of all that edges touch."""
    return {name for edge in edges for name in (edge.cause, edge.effect)}


def nodes_of(connection: Connection, names: Iterable[str]) -> list[LineageNode]:
    """The nodes of those names that are known, by name."""
    nodes = []
    for some in _asked_at_once(sorted(names)):
        rows = connection.execute(select(NODES).where(NODES.c.name.in_(some)))
        nodes += [LineageNode(row.name, row.kind, row.digest) for row in rows]
    return nodes


def _walk(
    connection: Connection, starts: Iterable[str], touched: Column[str], onward: str
) -> set[LineageEdge]:
    found: set[LineageEdge] = set()
    frontier = sorted(set(starts))
    seen = set(frontier)
    while frontier:
        edges: set[LineageEdge] = set()
        for some in _asked_at_once(frontier):
            rows = connection.execute(select(EDGES).where(touched.in_(some)))
            edges |= {LineageEdge(row.cause, row.effect) for row in rows}
        found |= edges
        frontier = sorted({getattr(edge, onward) for edge in edges} - seen)
        seen.update(frontier)
    return found


def _asked_at_once(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Databases take tens of thousands of values in one statement, and no more."""
    for start in range(0, len(names), _MOST_NAMES):
        yield names[start : start + _MOST_NAMES]
