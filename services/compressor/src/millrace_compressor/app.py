"""Use cases: what follows from a finished checkpoint, and what a person may ask for."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from prometheus_client import Gauge

from millrace_compressor import recovery, targets
from millrace_compressor.domain import Checkpoint, Compression, GatePolicy, Order, State, Target
from millrace_compressor.recovery import Recovery
from millrace_runtime import paging
from millrace_runtime.errors import MillraceError, NotFound

LOG = logging.getLogger(__name__)

_REPORTED = 200  # compressions of a model that are looked at for one report

_COUNT = Gauge("millrace_compression_work_count", "Compressions, by state.", ["state"])


class Compressions(Protocol):
    """Rows of compressions (``store.CompressionStore``)."""

    def is_considered(self, checkpoint_name: str) -> bool: ...
    def consider(self, checkpoint_name: str, orders: Sequence[Order]) -> None: ...
    def add(self, order: Order) -> Compression: ...
    def get(self, tenant: str, id: str) -> Compression | None: ...
    def page(self, tenant: str, model: str, before_id: str, count: int) -> list[Compression]: ...
    def cancel(self, tenant: str, id: str) -> Compression | None: ...
    def count_by_state(self) -> dict[str, int]: ...


class Deployments(Protocol):
    """Which deployments want a checkpoint (the registry)."""

    def match(self, tenant: str, checkpoint: Checkpoint) -> Sequence["Wanted"]:
        """Raises MillraceError when the registry does not answer."""
        ...


class Checkpoints(Protocol):
    """The finished checkpoints of the stages before this one."""

    def all(self) -> Iterable[tuple[str, Checkpoint, datetime]]:
        """(tenant, checkpoint, when it was finished) of every one, newest first.

        Raises MillraceError when a stage does not answer.
        """
        ...


class Wanted(Protocol):
    """One deployment, as far as the compressor cares."""

    @property
    def deployment(self) -> str: ...
    @property
    def targets(self) -> Sequence[Target]: ...
    @property
    def gate(self) -> GatePolicy: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def task(self) -> Mapping[str, Any]: ...


class Recoveries(Protocol):
    """Tuning jobs that recover what was pruned (``recovery.TunerRecoveries``)."""

    def unfinished(self) -> Iterable[Recovery]:
        """Those that are still to be done. Raises MillraceError: the tuner does not answer."""
        ...

    def cancel(self, found: Recovery) -> None:
        """Raises MillraceError: the tuner does not answer."""
        ...


class CompressorApp:
    """``ring_workers`` wakes the workers, ``expect_work`` says that there will soon be something
    for them. Both only speed things up."""

    def __init__(
        self,
        compressions: Compressions,
        deployments: Deployments,
        checkpoints: Checkpoints,
        *,
        ring_workers: Callable[[], None],
        recoveries: Recoveries | None = None,
        expect_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._expect_work = expect_work
        self._compressions = compressions
        self._deployments = deployments
        self._checkpoints = checkpoints
        self._ring_workers = ring_workers
        self._recoveries = recoveries

    def training_started(self) -> None:
        """Checkpoints are going to come."""
        self._expect_work()

    def checkpoint_finished(self, tenant: str, checkpoint: Checkpoint, time: datetime) -> None:
        """Order what the deployments of the checkpoint's model want of it. Once is as often.

        Raises:
            MillraceError: the registry does not answer; nothing was recorded.
        """
        if self._compressions.is_considered(checkpoint.name):
            return
        orders = [
            Order(
                tenant,
                checkpoint,
                target,
                wanted.gate,
                wanted.deployment,
                time,
                targets.narrowed(target, wanted.recipe),
                wanted.task,
            )
            for wanted in self._deployments.match(tenant, checkpoint)
            for target in wanted.targets
        ]
        self._compressions.consider(checkpoint.name, orders)
        self._ring_workers()

    def create(self, order: Order) -> Compression:
        """What a person asks for by hand; the same order again gives the same compression.

        Raises:
            InvalidArgument: its recipe says what its target does not have.
        """
        targets.require_taken(order.target, order.recipe)
        compression = self._compressions.add(order)
        self._ring_workers()
        return compression

    def get(self, tenant: str, id: str) -> Compression:
        """
        Raises:
            NotFound: there is none in this tenant.
        """
        return _found(self._compressions.get(tenant, id), id)

    def page(
        self, tenant: str, model: str, page_size: int, page_token: str
    ) -> tuple[list[Compression], str]:
        """Compressions, newest first, and the token of the next page (empty: there is none)."""
        size = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        found = self._compressions.page(tenant, model, before, size + 1)
        token = paging.encode_token(found[size - 1].id) if len(found) > size else ""
        return found[:size], token

    def report(self, tenant: str, id: str, *, whole_model: bool) -> list[Compression]:
        """A compression, and what else was measured of its checkpoint (or of its model), newest
        first.

        Raises:
            NotFound: there is none in this tenant.
        """
        asked = self.get(tenant, id)
        checkpoint = asked.order.checkpoint
        others = [
            compression
            for compression in self._compressions.page(tenant, checkpoint.model, "", _REPORTED)
            if compression.measurements is not None
            and compression.id != id
            and (whole_model or compression.order.checkpoint.name == checkpoint.name)
        ]
        return [asked, *others]

    def cancel(self, tenant: str, id: str) -> Compression:
        """
        Raises:
            NotFound: there is none in this tenant.
        """
        cancelled = _found(self._compressions.cancel(tenant, id), id)
        if recovery.is_wanted(cancelled.order):
            try:
                self._cancel_recoveries()
            except MillraceError as error:  # the reconciler will
                LOG.warning("the recovery of %s is not cancelled yet: %s", id, error)
        return cancelled

    def _cancel_recoveries(self) -> None:
        """Cancel each tuning job whose compression has ended without it."""
        if self._recoveries is None:
            return
        for found in self._recoveries.unfinished():
            compression = self._compressions.get(found.tenant, found.compression)
            if compression is not None and compression.state.has_ended:
                self._recoveries.cancel(found)

    def reconcile(self) -> None:
        """Consider every finished checkpoint that no fact has told of."""
        counts = self._compressions.count_by_state()
        for state in State:
            _COUNT.labels(state.value).set(counts.get(state.value, 0))
        self._cancel_recoveries()
        # Oldest first, so that a newer one supersedes an older, as facts would have it.
        for tenant, checkpoint, time in reversed(list(self._checkpoints.all())):
            self.checkpoint_finished(tenant, checkpoint, time)


def _found(compression: Compression | None, id: str) -> Compression:
    if compression is None:
        raise NotFound(f"there is no compression {id!r}")
    return compression
