"""All of webhooks in one gateway: the use cases, the facts that come, and the attempts.

Facts come from NATS, those of the gateway's own batches too: what the stream loses, the outboxes
publish again, and a fact that comes twice has its rows already. A mesh without a single endpoint
consumes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from nats.aio.client import Client
from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError

from millrace.topology import FACTS
from millrace_gateway.settings import GatewaySettings
from millrace_gateway.webhooks.app import Webhooks
from millrace_gateway.webhooks.deliver import Deliverer
from millrace_gateway.webhooks.destination import Destinations
from millrace_gateway.webhooks.domain import Status
from millrace_gateway.webhooks.post import Poster
from millrace_gateway.webhooks.queue import DeliveryQueue
from millrace_gateway.webhooks.signing import load_key
from millrace_gateway.webhooks.store import WebhookStore
from millrace_runtime import owner
from millrace_runtime.bus import Consumer, Subscription
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import Database
from millrace_runtime.settings import secret

LOG = logging.getLogger(__name__)

CONSUMER = "gateway"
_LOOK_SECONDS = 1.0
_SWEEP_SECONDS = 3600.0
_DAY_SECONDS = 24 * 3600.0

_DELIVERIES = Gauge(
    "millrace_webhook_deliveries", "Deliveries by status, of all gateways.", ["status"]
)


class WebhookService:
    """Takes facts, and attempts deliveries, from the gateway's start until it drains.

    Raises:
        OSError, ValueError: there is no key to sign with.
    """

    def __init__(self, settings: GatewaySettings, database: Database) -> None:
        key = load_key(secret(settings.webhook_key), key_path(settings))
        destinations = Destinations(settings.webhook_allowed_networks, settings.webhook_allow_http)
        poster = Poster(destinations, settings.webhook_timeout_seconds)
        self._store = WebhookStore(
            database, retention_seconds=settings.webhook_retention_days * _DAY_SECONDS
        )
        queue = DeliveryQueue(
            database,
            owner=owner.this_process(),
            lease_seconds=settings.webhook_timeout_seconds + settings.lease_seconds,
        )
        self._deliverer = Deliverer(
            queue, poster, key, settings.webhook_retry_seconds, settings.webhook_concurrency
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_wanted = asyncio.Event()
        self.app = Webhooks(self._store, poster, key, self._ring)

    def measured(self, measure: Callable[[], None]) -> Callable[[], None]:
        """``measure``, and the metrics of webhooks too."""

        def both() -> None:
            measure()
            counts = self._store.count_by_status()
            for status in Status:
                _DELIVERIES.labels(status.value).set(counts.get(status.value, 0))

        return both

    async def run(self, draining: asyncio.Event) -> None:
        """Work until the gateway drains, or this is cancelled."""
        self._loop = asyncio.get_running_loop()
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self._deliverer.run(draining)
        finally:
            sweeping.cancel()

    async def consume(self, client: Client) -> None:
        """Take facts for ever, from when there is an endpoint that may want them."""
        while not await self._has_endpoints():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._is_wanted.wait()
                    self._is_wanted.clear()
        await Consumer(CONSUMER, self.subscriptions()).run(client)

    def subscriptions(self) -> Sequence[Subscription]:
        """Every kind of fact that there is."""
        return [Subscription(fact.message, self.take) for fact in FACTS]

    def take(self, fact: Event) -> None:
        """Note a fact for whoever wants it; called in a thread."""
        if self._store.record(fact) and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliverer.ring)

    async def _has_endpoints(self) -> bool:
        try:
            return await asyncio.to_thread(self._store.has_any)
        except SQLAlchemyError as error:
            LOG.warning("endpoints cannot be looked up now: %s", error)
            return False

    def _ring(self) -> None:
        """Called in the loop, by the use cases."""
        self._is_wanted.set()
        self._deliverer.ring()

    async def _sweep(self) -> None:
        """Forget deliveries that ended long ago, now and then."""
        while True:
            try:
                count = await asyncio.to_thread(self._store.forget)
                if count:
                    LOG.info("%d deliveries that ended long ago are listed no more", count)
            except SQLAlchemyError:  # it is tried again
                LOG.exception("deliveries of long ago could not be deleted")
            await asyncio.sleep(_SWEEP_SECONDS)


def key_path(settings: GatewaySettings) -> Path:
    """Where the key lies: by default beside the operator's."""
    return settings.webhook_key_path or settings.operator_key_path.with_name("webhook-key")
