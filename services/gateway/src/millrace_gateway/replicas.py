"""How many gateways share a database: each says there, once a second, that it is still at work.

What gateways count in memory, places at endpoints and what keys may use, is theirs together: each
holds its part of it. A gateway counts for as long as its row changes between looks. No clocks are
compared, and while the database is away nobody is taken for gone.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

from prometheus_client import Gauge
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from millrace_gateway.store import GATEWAYS
from millrace_runtime import owner
from millrace_runtime.database import Database

LOG = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
MISSED_LOOKS = 5
"""So often a gateway's row may be found unchanged; after one look more the gateway is gone."""

_GATEWAYS = Gauge("millrace_gateways", "Gateways that share places and limits, as seen here.")


class Shared(Protocol):
    """What gateways have together; ``entrance.Entrance`` and ``limits.Limiter`` are."""

    def share(self, gateways: int) -> None:
        """Hold this gateway to its part."""
        ...


class Roll:
    """Who is at work, by one look after the other. Of this machine's processes an end is seen."""

    def __init__(self, has_ended: Callable[[str], bool] = owner.has_ended) -> None:
        self._has_ended = has_ended
        self._beats: Mapping[str, int] = {}
        self._missed: dict[str, int] = {}

    def look(self, beats: Mapping[str, int]) -> Collection[str]:
        """Which of the gateways are gone, given how often each has said that it is not."""
        self._missed = {
            gateway: self._missed[gateway] + 1 if self._beats.get(gateway) == count else 0
            for gateway, count in beats.items()
        }
        self._beats = beats
        return {
            gateway
            for gateway, missed in self._missed.items()
            if missed > MISSED_LOOKS or self._has_ended(gateway)
        }


class Replicas:
    """This gateway among those at its database.

    Args:
        gateway: a name that no other process has or had.

    Attributes:
        count: how many are at work, this one too; as it was, while the database is away.
    """

    def __init__(self, database: Database, gateway: str, roll: Roll | None = None) -> None:
        self._database = database
        self._gateway = gateway
        self._roll = roll or Roll()
        self.count = 1

    async def look(self, *shared: Shared) -> None:
        """Say that this gateway is at work, see who else is, and hold to the part that is left."""
        try:
            count = await asyncio.to_thread(self.beat)
        except SQLAlchemyError as error:
            LOG.warning("other gateways cannot be seen now: %s", error)
            return
        _GATEWAYS.set(count)
        if count != self.count:
            LOG.info("%d gateways share places and limits", count)
            self.count = count
            for one in shared:
                one.share(count)

    async def run(self, draining: asyncio.Event, *shared: Shared) -> None:
        """Look once a second until this gateway drains, and takes nothing more; then leave."""
        while not draining.is_set():
            await self.look(*shared)
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_SECONDS):
                    await draining.wait()
        try:
            await asyncio.to_thread(self._forget, {self._gateway})
        except SQLAlchemyError as error:
            LOG.warning("the other gateways will notice late that this one ends: %s", error)

    def beat(self) -> int:
        """One look, and how many gateways there are by it.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        ours = update(GATEWAYS).where(GATEWAYS.c.id == self._gateway)
        with self._database.transaction() as connection:
            if not connection.execute(ours.values(beats=GATEWAYS.c.beats + 1)).rowcount:
                connection.execute(GATEWAYS.insert().values(id=self._gateway, beats=1))
            rows = connection.execute(select(GATEWAYS.c.id, GATEWAYS.c.beats))
            beats = {row.id: row.beats for row in rows}
        gone = set(self._roll.look(beats)) - {self._gateway}
        if gone:
            self._forget(gone)
        return len(beats) - len(gone)

    def _forget(self, gateways: Collection[str]) -> None:
        """One that is at work after all says so again."""
        with self._database.transaction() as connection:
            connection.execute(delete(GATEWAYS).where(GATEWAYS.c.id.in_(gateways)))
