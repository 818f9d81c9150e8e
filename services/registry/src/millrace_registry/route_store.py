"""The route table: one row, made of what is desired and of what answers on every endpoint."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import Connection, select

from millrace_registry.domain import Route
from millrace_registry.endpoint_store import Answering, say_answering
from millrace_registry.memory import Key
from millrace_registry.rows import route_document, route_of
from millrace_registry.schema import ROUTES
from millrace_registry.upsert import insert
from millrace_runtime.database import Database

RoutesOf = Callable[[Answering], Sequence[Route]]
"""What gateways are to be told, where versions answer on these endpoints; reads nothing."""


class RouteStore:
    """``fenced`` opens a transaction that only the controller of ``endpoint`` can commit."""

    def __init__(
        self,
        database: Database,
        endpoint: str,
        fenced: Callable[[], AbstractContextManager[Connection]],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._endpoint = endpoint
        self._fenced = fenced
        self._now = now

    def write(self, answering: Collection[Key], routes_of: RoutesOf) -> bool:
        """Say what answers on this endpoint, and publish the route table, if it changed; its
        revision rises by one.

        Of the controllers of several endpoints one writes at a time, so that none brings back what
        another has taken out of the routes.
        """
        with self._fenced() as connection:
            row = connection.execute(select(ROUTES).with_for_update()).first()
            found = say_answering(connection, self._endpoint, answering, self._now())
            document = [route_document(route) for route in routes_of(found)]
            if row is not None and row.document == document:
                return False
            revision = row.revision + 1 if row is not None else 1
            values = {"id": 1, "revision": revision, "document": document}
            statement = insert(connection, ROUTES).values(**values)
            changed = {"revision": revision, "document": document}
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))
        return True

    def read(self) -> tuple[int, list[Route]]:
        """The route table and its revision; 0 before the first."""
        with self._database.transaction() as connection:
            row = connection.execute(select(ROUTES)).first()
        return (0, []) if row is None else (row.revision, [route_of(d) for d in row.document])
