"""What each endpoint says of itself: which versions answer there, and what its memory is for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from millrace_registry.domain import RolloutState, Version
from millrace_registry.memory import Claim, Key, Memory, Rank
from millrace_registry.rows import version_of
from millrace_registry.schema import ENDPOINTS, HOLDS, ROLLOUTS, VERSIONS
from millrace_registry.upsert import insert
from millrace_runtime.database import Database

# As long as a registry may be away before the routes lead past the endpoint that it alone sees to.
_AWAY = timedelta(seconds=60)
_SAID_AGAIN = timedelta(seconds=10)

VersionKey = tuple[str, str, int]  # (tenant, model, version)
Answering = Mapping[Key, Sequence[str]]
"""The endpoints on which each version answers."""


class EndpointStore:
    """``fenced`` opens a transaction that only the controller of ``endpoint`` can commit."""

    def __init__(
        self,
        database: Database,
        endpoint: str,
        fenced: Callable[[], AbstractContextManager[Connection]],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self.endpoint = endpoint
        self._fenced = fenced
        self._now = now
        self._written: Memory | None = None

    def asked_times(self) -> Mapping[VersionKey, datetime]:
        """When each held version's hold ends, which is in the order that they were asked for."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(HOLDS)).all()
        return {(row.tenant, row.model, row.version): row.expire_time for row in rows}

    def pending_versions(self) -> Mapping[VersionKey, Version]:
        """The versions whose rollouts have not had their turn."""
        of_rollout = (
            (ROLLOUTS.c.tenant == VERSIONS.c.tenant)
            & (ROLLOUTS.c.model == VERSIONS.c.model)
            & (ROLLOUTS.c.to_version == VERSIONS.c.number)
        )
        waits = ROLLOUTS.c.state == RolloutState.PENDING.value
        query = select(VERSIONS).join(ROLLOUTS, of_rollout).where(waits)
        with self._database.transaction() as connection:
            versions = [version_of(row) for row in connection.execute(query)]
        return {(each.tenant, each.model, each.number): each for each in versions}

    def end_holds(self, keys: Collection[VersionKey]) -> None:
        """Let go of versions; they leave the routes first, and drain then."""
        if not keys:
            return
        now = self._now()
        with self._fenced() as connection:
            for tenant, model, number in keys:
                ended = update(HOLDS).where(
                    HOLDS.c.tenant == tenant, HOLDS.c.model == model, HOLDS.c.version == number
                )
                connection.execute(ended.where(HOLDS.c.expire_time > now).values(expire_time=now))

    def write_memory(self, budget_bytes: int, claims: Collection[Claim]) -> None:
        """Say what the endpoint's memory is for, where that has changed."""
        memory = Memory(self.endpoint, budget_bytes, tuple(sorted(claims, key=lambda c: c.key)))
        if memory == self._written:
            return
        document = {"budget_bytes": budget_bytes, "claims": [_document(c) for c in memory.claims]}
        with self._fenced() as connection:
            _write(connection, self.endpoint, {"memory": document, "update_time": self._now()})
        self._written = memory


def say_answering(
    connection: Connection, endpoint: str, answering: Collection[Key], now: datetime
) -> Answering:
    """Write what answers on ``endpoint``; what answers anywhere, by all that were heard of lately.

    The caller holds the lock of the routes, which are made of it.
    """
    own = sorted([name, number] for name, number in answering)
    row = connection.execute(select(ENDPOINTS).where(ENDPOINTS.c.id == endpoint)).first()
    if row is None or row.answering != own or row.update_time < now - _SAID_AGAIN:
        _write(connection, endpoint, {"answering": own, "update_time": now})
    rows = connection.execute(
        select(ENDPOINTS).where(ENDPOINTS.c.update_time >= now - _AWAY).order_by(ENDPOINTS.c.id)
    )
    found: dict[Key, list[str]] = {}
    for each in rows:
        for name, number in each.answering or []:
            found.setdefault((name, number), []).append(each.id)
    return found


def memories(connection: Connection, now: datetime) -> Sequence[Memory]:
    """The memory of every endpoint that was heard of lately."""
    lately = select(ENDPOINTS).where(ENDPOINTS.c.update_time >= now - _AWAY)
    return [
        Memory(row.id, row.memory["budget_bytes"], tuple(_claim(c) for c in row.memory["claims"]))
        for row in connection.execute(lately)
        if row.memory
    ]


def _write(connection: Connection, endpoint: str, values: Mapping[str, Any]) -> None:
    statement = insert(connection, ENDPOINTS).values(id=endpoint, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=dict(values)))


def _document(claim: Claim) -> list[Any]:
    return [*claim.key, int(claim.rank), claim.need_bytes, claim.asked, claim.is_loaded]


def _claim(document: Sequence[Any]) -> Claim:
    name, number, rank, need_bytes, asked, is_loaded = document
    return Claim((name, number), Rank(rank), need_bytes, asked, is_loaded)
