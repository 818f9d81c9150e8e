"""What waits in a service's database, as metrics: facts to be published, work left lying.

Measured when the metrics are read, so that they hold also while NATS is away and while every
worker hangs. ``millrace doctor`` reads them.
"""

import logging
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError

from millrace_runtime import leases, names
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox

LOG = logging.getLogger(__name__)

# Far more than the second in which idle workers look for work.
ABANDONED_AFTER = timedelta(seconds=60)

_UNPUBLISHED = Gauge(
    "millrace_outbox_unpublished_facts", "Facts recorded that the stream does not hold."
)
_OLDEST = Gauge(
    "millrace_outbox_oldest_fact_seconds", "Age of the oldest of them; 0 when there are none."
)
_EXPIRED = Gauge(
    "millrace_work_expired_leases",
    "Rows of work whose lease ended a minute ago or more, and that nobody took over.",
)
_DURABLE = Gauge(
    "millrace_database_durable", "1 when the database keeps, on power loss, what it committed."
)


def measure(database: Database, outbox: Outbox, now: datetime | None = None) -> None:
    """Bring the gauges up to date. While the database does not answer they stay as they are."""
    moment = now or datetime.now(UTC)
    try:
        _DURABLE.set(database.is_durable())
        with database.transaction() as connection:
            count, oldest = outbox.backlog(connection), outbox.oldest_unpublished(connection)
            _UNPUBLISHED.set(count)
            _OLDEST.set(_age_seconds(oldest, moment) if oldest else 0.0)
            _EXPIRED.set(leases.count_abandoned(connection, moment - ABANDONED_AFTER))
    except SQLAlchemyError as error:
        LOG.warning("the backlog cannot be measured: %s", error)


def _age_seconds(fact: str, now: datetime) -> float:
    return max(0.0, now.timestamp() - names.id_time_seconds(fact))
