"""Standing recalls look for their rows in all that models come to learn from."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from millrace.data.v1 import rows_pb2
from millrace.data.v1.rows_pb2_grpc import RowServiceStub
from millrace_registry.recall import Cause
from millrace_registry.recall_looks import Held, RecallLooks, Search
from millrace_registry.recall_store import Recalls
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import MillraceError, Unavailable

LOG = logging.getLogger(__name__)

# An index of a million rows is searched in milliseconds; that of an old file is made first.
_DEADLINE_SECONDS = 60.0


class Rows(Protocol):
    """Who knows which rows files and datasets hold."""

    def held(self, search: Search) -> Held:
        """
        Raises:
            Unavailable: it cannot be asked now.
            MillraceError: the rows cannot be looked for.
        """
        ...


class RowsOfData:
    """``Rows``: the data service."""

    def __init__(self, stub: RowServiceStub) -> None:
        self._stub = stub

    @classmethod
    def at(cls, address: str, token: str | None) -> "RowsOfData":
        return cls(RowServiceStub(open_channel(address, token)))

    def held(self, search: Search) -> Held:
        request = rows_pb2.FindRowsRequest(
            parent=f"tenants/{search.tenant}",
            hashes=search.sought.hashes,
            file=search.sought.file,
            names=search.names,
        )
        found = call(self._stub.FindRows, request, timeout=_DEADLINE_SECONDS)
        return Held(tuple(map(_cause, found.holders)), tuple(found.unindexed))


class RecallWatch:
    """Looks every ``period_seconds``, and at once when rung (``hosting.Background``).

    Where it has looked is kept in the transaction of what it found: of two registries that look
    at the same time one finds it, and whoever is killed looks again.
    """

    name = "recall-watch"

    def __init__(
        self,
        recalls: Recalls,
        looks: RecallLooks,
        rows: Rows,
        period_seconds: float,
        *,
        ring: Callable[[], None],
    ) -> None:
        self._recalls = recalls
        self._looks = looks
        self._rows = rows
        self._period_seconds = period_seconds
        self._ring = ring
        self._doorbell = threading.Event()
        self._draining = threading.Event()

    def ring(self) -> None:
        """Say that there may be something to look into. Callable from any thread."""
        self._doorbell.set()

    def drain(self) -> None:
        self._draining.set()
        self._doorbell.set()

    def run(self) -> None:
        while not self._draining.is_set():
            self._doorbell.clear()
            try:
                self.look()
            except Unavailable as error:
                LOG.info("recalls look for their rows later: %s", error)
            except Exception:  # the next look may succeed; the loop must live to take it
                LOG.exception("a look for recalled rows failed")
            self._doorbell.wait(self._period_seconds)

    def look(self) -> None:
        """Look wherever a standing recall has not looked yet.

        Raises:
            Unavailable
        """
        for tenant, recall in self._looks.standing():
            try:
                self._look_for(tenant, recall)
            except Unavailable:
                raise
            except MillraceError as error:
                LOG.error("%s cannot look for its rows: %s", recall, error)

    def _look_for(self, tenant: str, recall: str) -> None:
        while not self._draining.is_set():
            search = self._looks.next(tenant, recall)
            if search is None:
                return
            if self._recalls.join(search, self._rows.held(search)):
                self._ring()


def _cause(holder: rows_pb2.RowHolder) -> Cause:
    return Cause(
        name=holder.name,
        digest=holder.digest,
        is_heldout=holder.held_out,
        row_count=holder.row_count,
        hashes=tuple(holder.hashes),
    )
