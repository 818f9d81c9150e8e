"""All of batches in one gateway: the use cases, and the threads that run batches."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from millrace_gateway.batches.app import Batches
from millrace_gateway.batches.ask import Desk
from millrace_gateway.batches.domain import Status
from millrace_gateway.batches.files import DataFiles
from millrace_gateway.batches.input import InputLimits
from millrace_gateway.batches.run import BatchRunner, Pace
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.settings import GatewaySettings
from millrace_runtime.leases import Lease
from millrace_runtime.work import Worker

if TYPE_CHECKING:
    from millrace_gateway.rest.caller import Gateway

LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SWEEP_SECONDS = 3600.0

_BATCHES = Gauge("millrace_batches", "Batches by status, of all gateways.", ["status"])


class BatchService:
    """Runs some batches at a time, from the gateway's start until it drains.

    Threads claim batches, keep their leases alive and notice when one is lost, so that a busy
    loop loses none; the work itself is done in the loop, where the handlers are.
    """

    def __init__(
        self, settings: GatewaySettings, store: BatchStore, ring_relay: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._ring_relay = ring_relay
        self._workers: Sequence[Worker] = [
            Worker(f"batches-{number}", store, self._perform, settings.lease_seconds)
            for number in range(settings.batches)
        ]
        self.app = Batches(store, ring_relay, self._ring)

    def measured(self, measure: Callable[[], None]) -> Callable[[], None]:
        """``measure``, and the metrics of batches too."""

        def both() -> None:
            measure()
            counts = self._store.count_by_status()
            for status in Status:
                _BATCHES.labels(status.value).set(counts.get(status.value, 0))

        return both

    async def run(self, gateway: "Gateway", handlers: ASGIApp) -> None:
        """Work until the gateway drains, or this is cancelled; then give all work back.

        What is under way is broken off, and asked again by whoever goes on.

        Args:
            handlers: what lies behind the gateway's edge.
        """
        self._loop = asyncio.get_running_loop()
        self._runner = self._runner_of(gateway, handlers)
        threads = [threading.Thread(target=one.run, name=one.name) for one in self._workers]
        for thread in threads:
            thread.start()
        sweeping = asyncio.create_task(self._sweep())
        try:
            await gateway.draining.wait()
        finally:
            sweeping.cancel()
            for worker in self._workers:
                worker.drain()
            for thread in threads:
                await asyncio.to_thread(thread.join)

    def _runner_of(self, gateway: "Gateway", handlers: ASGIApp) -> BatchRunner:
        settings = self._settings
        return BatchRunner(
            self._store,
            DataFiles(gateway.upstream),
            Desk(handlers, gateway.keys.find).ask,
            gateway.generator.routes.find,
            settings.scratch_directory / "batches",
            InputLimits(settings.batch_requests, settings.maximum_body_bytes),
            Pace(
                settings.batch_concurrency,
                settings.batch_patience_seconds,
                settings.batch_turn_seconds,
            ),
            ring=self._ring_relay,
        )

    async def _sweep(self) -> None:
        """Forget batches that ended long ago, now and then."""
        retention = timedelta(days=self._settings.batch_retention_days)
        while True:
            try:
                count = await asyncio.to_thread(self._store.forget, datetime.now(UTC) - retention)
                if count:
                    LOG.info("%d batches that ended long ago are listed no more", count)
            except SQLAlchemyError:  # it is tried again
                LOG.exception("batches of long ago could not be deleted")
            await asyncio.sleep(_SWEEP_SECONDS)

    def _perform(self, lease: Lease, stop: threading.Event) -> None:
        """Called in a worker's thread."""
        running = asyncio.run_coroutine_threadsafe(self._runner.run(lease), self._loop)
        while not wait((running,), _POLL_SECONDS).done:
            if stop.is_set():
                running.cancel()
                return
        running.result()

    def _ring(self) -> None:
        for worker in self._workers:
            worker.ring()
