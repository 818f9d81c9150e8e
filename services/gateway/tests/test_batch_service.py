"""What a gateway does about batches beside running them."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from batch_parts import order

from millrace_gateway.batches.domain import BatchError
from millrace_gateway.batches.service import BatchService
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.settings import GatewaySettings
from millrace_gateway.store import METADATA, OUTBOX
from millrace_runtime.database import open_database
from millrace_runtime.outbox import Outbox


def test_what_ended_long_ago_is_swept_away(tmp_path: Path) -> None:
    """At the gateway's start already; what ended since is listed."""
    database = open_database(f"sqlite:///{tmp_path}/gateway.db")
    METADATA.create_all(database.engine)
    stores = [
        BatchStore(
            database,
            Outbox(OUTBOX),
            owner="elsewhere/1/1/1",
            lease_seconds=15,
            now=lambda age=age: datetime.now(UTC) - timedelta(days=age),
        )
        for age in (8, 6)
    ]
    old, young = (_failed(store) for store in stores)
    settings = GatewaySettings(batch_retention_days=7, scratch_directory=tmp_path)
    service = BatchService(settings, stores[1], lambda: None)
    assert {one.id for one in stores[1].page("default", 9, "")} == {old, young}
    asyncio.run(_run_until(service, lambda: stores[1].get("default", old) is None))
    assert [one.id for one in stores[1].page("default", 9, "")] == [young]
    database.close()


def _failed(store: BatchStore) -> str:
    batch = store.add(order("file-1"), "", "")
    lease = store.claim()
    assert lease is not None and lease.id == batch.id
    store.fail(lease, [BatchError("x", "y")])
    return batch.id


async def _run_until(service: BatchService, is_done: Any) -> None:
    """What the service is given of a gateway is asked for by batches alone; here are none."""
    draining = asyncio.Event()
    nothing: Any = SimpleNamespace(
        draining=draining,
        upstream=SimpleNamespace(data=None),
        keys=SimpleNamespace(find=None),
        generator=SimpleNamespace(routes=SimpleNamespace(find=None)),
    )
    running = asyncio.create_task(service.run(nothing, nothing))
    async with asyncio.timeout(60):
        while not is_done():
            await asyncio.sleep(0.01)
    draining.set()
    await running
