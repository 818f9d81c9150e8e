"""Use cases of recalls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from millrace_registry.domain import RequestKey, utc_now
from millrace_registry.recall import Action, Cause, Recall, Sought
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
    sought: Sought = field(default_factory=Sought)


class RecallApp:
    """``ring`` publishes facts; ``ring_controller`` has Triton looked at, and ``ring_watch`` what
    recalled rows may be in."""

    def __init__(
        self,
        recalls: Recalls,
        *,
        ring: Callable[[], None],
        ring_controller: Callable[[], None],
        ring_watch: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._recalls = recalls
        self._ring = ring
        self._ring_controller = ring_controller
        self._ring_watch = ring_watch
        self._now = now

    def create(self, wish: Wish, request: RequestKey) -> Recall:
        """Recall something, and let nothing serve that was made of it, as far as it says.

        Raises:
            InvalidArgument: a cause or a file of another tenant, or a cause twice.
            AlreadyExists: the request id was used for another request.
        """
        _require_own(wish)
        recall = Recall(
            tenant=wish.tenant,
            id=names.new_id("recall"),
            action=wish.action,
            reason=wish.reason,
            create_time=self._now(),
            causes=wish.causes,
            unindexed=wish.unindexed,
            sought=wish.sought,
            traceparent=telemetry.current_traceparent(),
        )
        made = self._recalls.create(recall, request)
        self._ring()
        self._ring_controller()
        self._ring_watch()
        return made

    def get(self, tenant: str, id: str) -> Recall:
        """
        Raises:
            NotFound
        """
        return _found(self._recalls.get(tenant, id), id)

    def lift(self, tenant: str, id: str, reason: str) -> Recall:
        """Let what a recall alone kept out of service be rolled out again. Twice is once.

        Raises:
            NotFound
            FailedPrecondition: RECALL_REPORTED, it never stood.
        """
        lifted = _found(self._recalls.lift(tenant, id, reason), id)
        self._ring()
        self._ring_controller()
        return lifted

    def page(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Recall], str]:
        """Recalls, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        found = self._recalls.page(tenant, paging.decode_token(page_token), count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""


def _require_own(wish: Wish) -> None:
    """
    Raises:
        InvalidArgument
    """
    if wish.sought.file and names.tenant_of(wish.sought.file) != wish.tenant:
        raise InvalidArgument(f"{wish.sought.file} is not of {wish.tenant}", field="file")
    seen = set()
    for index, cause in enumerate(wish.causes):
        if names.tenant_of(cause.name) != wish.tenant:
            raise InvalidArgument(
                f"{cause.name} is not of {wish.tenant}", field=f"causes[{index}].name"
            )
        if (cause.name, cause.is_heldout) in seen:
            raise InvalidArgument(f"{cause.name} is there twice", field=f"causes[{index}].name")
        seen.add((cause.name, cause.is_heldout))


def _found(recall: Recall | None, id: str) -> Recall:
    if recall is None:
        raise NotFound(f"there is no recall {id}")
    return recall
