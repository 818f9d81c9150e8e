"""Use cases of batches: make, show, list and cancel them."""

import asyncio
from collections.abc import Callable, Sequence

import orjson

from millrace_gateway.batches.domain import Batch, Order, Status
from millrace_gateway.batches.store import BatchStore
from millrace_runtime import paging
from millrace_runtime.errors import Aborted, NotFound
from millrace_runtime.manifest import sha256_bytes


class Batches:
    """Every batch is its tenant's alone: to others there is no such batch.

    Args:
        ring_relay: says that there are facts to publish.
        ring_workers: says that there is work.
    """

    def __init__(
        self,
        store: BatchStore,
        ring_relay: Callable[[], None],
        ring_workers: Callable[[], None],
    ) -> None:
        self._store = store
        self._ring_relay = ring_relay
        self._ring_workers = ring_workers

    async def create(self, order: Order, request_id: str) -> Batch:
        """A new batch, which is kept before this returns; its input is checked later.

        Raises:
            AlreadyExists: the request id was used for another batch.
        """
        asked = orjson.dumps(
            [order.endpoint, order.input_file_id, order.metadata], option=orjson.OPT_SORT_KEYS
        )
        batch = await asyncio.to_thread(self._store.add, order, request_id, sha256_bytes(asked))
        self._ring_relay()
        self._ring_workers()
        return batch

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """
        Raises:
            NotFound: the tenant has no such batch.
        """
        return _found(await asyncio.to_thread(self._store.get, tenant, batch_id), batch_id)

    async def page(self, tenant: str, size: int, page_token: str) -> tuple[Sequence[Batch], bool]:
        """Batches, newest first, and whether there are more.

        Raises:
            InvalidArgument: the token is none of ours.
        """
        before = paging.decode_token(page_token)
        found = await asyncio.to_thread(self._store.page, tenant, size + 1, before)
        return found[:size], len(found) > size

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Begin to cancel a batch. Twice is as once.

        Raises:
            NotFound: the tenant has no such batch.
            Aborted: it is at its end already.
        """
        batch = _found(await asyncio.to_thread(self._store.cancel, tenant, batch_id), batch_id)
        if batch.status not in (Status.CANCELLING, Status.CANCELLED):
            raise Aborted(
                f"Cannot cancel a batch with status '{batch.status}'.",
                reason="BATCH_NOT_CANCELLABLE",
            )
        self._ring_workers()
        return batch


def _found(batch: Batch | None, batch_id: str) -> Batch:
    if batch is None:
        raise NotFound(f"No such batch: {batch_id!r}", field="")
    return batch
