"""The outbox: facts kept beside the state they follow from, in the same transaction.

It is the history: rows are never removed. The relay (``relay.py``) publishes what it finds
unpublished; a row remembers in which incarnation of the stream it was published, so that
after the loss of the stream everything is published again. What else the stream has lost, the
audit (``audit.py``) finds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    func,
    or_,
    select,
    update,
)

from millrace.topology import fact_of
from millrace_runtime import cloudevent, names, telemetry
from millrace_runtime.errors import InvalidArgument

_BATCH_SIZE = 500
_PAGE_SIZE = 5000
# nats-server takes messages of 1 MiB with their headers; a larger fact would block its relay.
MAXIMUM_FACT_BYTES = 1_000_000


@dataclass(frozen=True)
class PendingFact:
    """A fact to be published: its id is the message id, its document the payload."""

    sequence: int
    id: str
    subject: str
    document: str
    traceparent: str


@dataclass(frozen=True)
class PublishedFact:
    """A fact that the server has acknowledged."""

    sequence: int
    id: str
    subject: str


def outbox_table(metadata: MetaData) -> Table:
    """Define the outbox in a service's schema."""
    return Table(
        "outbox",
        metadata,
        # SQLite numbers rows by itself only in a column declared INTEGER.
        Column(
            "sequence",
            BigInteger().with_variant(Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        Column("id", String(64), nullable=False, unique=True),
        Column("subject", String(255), nullable=False),
        Column("document", Text, nullable=False),
        Column("traceparent", String(64), nullable=False),
        Column("published_in", String(128)),
        Index("outbox_published_in", "published_in", "sequence"),
    )


class Outbox:
    """Writes facts into a service's transactions and hands them to the relay."""

    def __init__(
        self, table: Table, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._table = table
        self._now = now

    def record(
        self,
        connection: Connection,
        tenant: str,
        message: Message,
        *,
        traceparent: str | None = None,
    ) -> str:
        """Add the fact that ``message`` states to the caller's transaction; return its id.

        ``traceparent`` defaults to the current span's.

        Raises:
            InvalidArgument: FACT_TOO_LARGE; nothing was recorded.
        """
        parent = telemetry.current_traceparent() if traceparent is None else traceparent
        event = cloudevent.Event(
            id=names.new_id("fact"),
            fact=fact_of(type(message)),
            tenant=tenant,
            message=message,
            time=self._now(),
            traceparent=parent,
        )
        document = cloudevent.to_json(event)
        if len(document) > MAXIMUM_FACT_BYTES:
            raise InvalidArgument(
                f"{event.subject} would be a fact of {len(document)} bytes; it may have"
                f" {MAXIMUM_FACT_BYTES}",
                reason="FACT_TOO_LARGE",
            )
        connection.execute(
            self._table.insert().values(
                id=event.id,
                subject=event.subject,
                document=document,
                traceparent=parent,
            )
        )
        return event.id

    def pending(self, connection: Connection, incarnation: str) -> Sequence[PendingFact]:
        """The oldest facts not yet published in ``incarnation``, in order, 500 at most."""
        table = self._table
        rows = connection.execute(
            select(table)
            .where(or_(table.c.published_in.is_(None), table.c.published_in != incarnation))
            .order_by(table.c.sequence)
            .limit(_BATCH_SIZE)
        )
        return [_fact(row) for row in rows]

    def mark_published(
        self, connection: Connection, facts: Sequence[PendingFact], incarnation: str
    ) -> None:
        """Remember that the server has acknowledged ``facts``."""
        sequences = [fact.sequence for fact in facts]
        connection.execute(
            update(self._table)
            .where(self._table.c.sequence.in_(sequences))
            .values(published_in=incarnation)
        )

    def published(
        self, connection: Connection, incarnation: str, after: int = 0
    ) -> Sequence[PublishedFact]:
        """The oldest facts published in ``incarnation`` after a sequence, 5,000 at most."""
        table = self._table
        rows = connection.execute(
            select(table.c.sequence, table.c.id, table.c.subject)
            .where(table.c.published_in == incarnation, table.c.sequence > after)
            .order_by(table.c.sequence)
            .limit(_PAGE_SIZE)
        )
        return [PublishedFact(row.sequence, row.id, row.subject) for row in rows]

    def find(self, connection: Connection, ids: Sequence[str]) -> Sequence[PendingFact]:
        """The facts with these ids, in order; for some hundreds at a time."""
        table = self._table
        rows = connection.execute(
            select(table).where(table.c.id.in_(ids)).order_by(table.c.sequence)
        )
        return [_fact(row) for row in rows]

    def backlog(self, connection: Connection) -> int:
        """How many facts have never been published."""
        unpublished = self._table.c.published_in.is_(None)
        count = select(func.count()).select_from(self._table).where(unpublished)
        return int(connection.execute(count).scalar_one())

    def oldest_unpublished(self, connection: Connection) -> str | None:
        """Id of the oldest of these facts, which tells its age."""
        table = self._table
        oldest = select(table.c.id).where(table.c.published_in.is_(None)).order_by(table.c.sequence)
        return connection.execute(oldest.limit(1)).scalar()


def _fact(row: Row[Any]) -> PendingFact:
    return PendingFact(row.sequence, row.id, row.subject, row.document, row.traceparent)
