"""Use cases of searches for settings."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from millrace_registry.domain import Deployment, RequestKey, utc_now
from millrace_registry.tuning.resource import Progress, ServingTuning, Wish
from millrace_registry.tuning.service import Deployments, require_serving
from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import NotFound


class Tunings(Protocol):
    """Rows of searches (``store.TuningStore``)."""

    def add(self, tuning: ServingTuning, request: RequestKey) -> ServingTuning: ...
    def get(self, tenant: str, id: str) -> ServingTuning | None: ...
    def page(
        self, tenant: str, deployment: str, before_id: str, count: int
    ) -> list[ServingTuning]: ...
    def cancel(self, tenant: str, id: str) -> ServingTuning | None: ...


class TuningApp:
    """``ring_worker`` wakes whoever searches; it only speeds things up."""

    def __init__(
        self,
        tunings: Tunings,
        deployments: Deployments,
        *,
        ring_worker: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._tunings = tunings
        self._deployments = deployments
        self._ring_worker = ring_worker
        self._now = now

    def create(self, tenant: str, deployment: str, wish: Wish, key: RequestKey) -> ServingTuning:
        """Have settings searched for; the same request again answers what it made.

        Raises:
            NotFound: there is no such deployment.
            FailedPrecondition: no version of its model serves.
            AlreadyExists: it has a search that has not ended, or the request id was used for
                another request.
        """
        found = self._deployments.deployment(tenant, deployment)
        require_serving(self._deployments, found)
        tuning = ServingTuning(
            tenant=tenant,
            id=names.new_id("tuning"),
            deployment=deployment,
            model=found.model,
            wish=wish,
            create_time=self._now(),
            progress=Progress("waits for its turn", 0, wish.looks),
            traceparent=telemetry.current_traceparent(),
        )
        made = self._tunings.add(tuning, key)
        self._ring_worker()
        return made

    def get(self, tenant: str, id: str) -> tuple[ServingTuning, Deployment]:
        """A search, and its deployment as it is now.

        Raises:
            NotFound
        """
        tuning = _found(self._tunings.get(tenant, id), id)
        return tuning, self._deployments.deployment(tenant, tuning.deployment)

    def page(
        self, tenant: str, deployment: str, page_size: int, page_token: str
    ) -> tuple[list[ServingTuning], str]:
        """Searches, newest first, of one deployment or (empty) of all, and the token of the next
        page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        found = self._tunings.page(tenant, deployment, before, count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""

    def cancel(self, tenant: str, id: str) -> tuple[ServingTuning, Deployment]:
        """End a search; one that has ended stays as it is.

        Raises:
            NotFound
        """
        _found(self._tunings.cancel(tenant, id), id)
        return self.get(tenant, id)


def _found(tuning: ServingTuning | None, id: str) -> ServingTuning:
    if tuning is None:
        raise NotFound(f"there is no search for settings {id}")
    return tuning
