"""Use cases of recalls."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from millrace_registry.domain import RequestKey, utc_now
from millrace_registry.recall import Action, Cause, Recall
from millrace_registry.recall_store import Recalls
from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import InvalidArgument, NotFound


@dataclass(frozen=True)
class Wish:
    """What is to be recalled, and how."""

    tenant: str
    action: Action
    reason: str
    causes: tuple[Cause, ...]
    unindexed: tuple[str, ...]


class RecallApp:
    """``ring`` publishes facts; ``ring_controller`` has Triton looked at."""

    def __init__(
        self,
        recalls: Recalls,
        *,
        ring: Callable[[], None],
        ring_controller: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._recalls = recalls
        self._ring = ring
        self._ring_controller = ring_controller
        self._now = now

    def create(self, wish: Wish, request: RequestKey) -> Recall:
        """Recall something, and let nothing serve that was made of it, as far as it says.

        Raises:
            InvalidArgument: a cause of another tenant, or one twice.
            AlreadyExists: the request id was used for another request.
        """
        seen = set()
        for index, cause in enumerate(wish.causes):
            if names.tenant_of(cause.name) != wish.tenant:
                raise InvalidArgument(
                    f"{cause.name} is not of {wish.tenant}", field=f"causes[{index}].name"
                )
            if (cause.name, cause.is_heldout) in seen:
                raise InvalidArgument(f"{cause.name} is there twice", field=f"causes[{index}].name")
            seen.add((cause.name, cause.is_heldout))
        recall = Recall(
            tenant=wish.tenant,
            id=names.new_id("recall"),
            action=wish.action,
            reason=wish.reason,
            create_time=self._now(),
            causes=wish.causes,
            unindexed=wish.unindexed,
            traceparent=telemetry.current_traceparent(),
        )
        made = self._recalls.create(recall, request)
        self._ring()
        self._ring_controller()
        return made

    def get(self, tenant: str, id: str) -> Recall:
        """
        Raises:
            NotFound
        """
        found = self._recalls.get(tenant, id)
        if found is None:
            raise NotFound(f"there is no recall {id}")
        return found

    def page(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Recall], str]:
        """Recalls, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        found = self._recalls.page(tenant, paging.decode_token(page_token), count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""
