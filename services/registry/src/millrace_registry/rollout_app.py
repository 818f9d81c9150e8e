"""Use cases of rollouts: what users ask for and about."""

from collections.abc import Callable

from millrace_registry.catalogue import Catalogue
from millrace_registry.domain import RequestKey, Rollout, RolloutState
from millrace_runtime import paging
from millrace_runtime.errors import FailedPrecondition, NotFound


class RolloutApp:
    """The rollouts' part of ``app.RegistryApp``."""

    def __init__(
        self, catalogue: Catalogue, ring: Callable[[], None], ring_controller: Callable[[], None]
    ) -> None:
        self._catalogue = catalogue
        self._ring = ring
        self._ring_controller = ring_controller

    def create_rollout(
        self, tenant: str, model: str, number: int, request: RequestKey, traceparent: str
    ) -> Rollout:
        """Roll out a version that a person chose, by the deployment's strategy.

        Rollouts that wait for their turn give way to it; one that is under way is let end.

        Raises:
            NotFound: there is no such model or version.
            FailedPrecondition: it serves, is being rolled out, was quarantined, or no engine
                here runs it.
            AlreadyExists: the request id was used otherwise.
        """
        made = self._catalogue.create_rollout(tenant, model, number, request, traceparent)
        self._ring()
        self._ring_controller()
        return made

    def rollout(self, tenant: str, id: str) -> Rollout:
        """
        Raises:
            NotFound
        """
        return _found(self._catalogue.rollout(tenant, id), id)

    def rollouts(
        self, tenant: str, model: str, page_size: int, page_token: str
    ) -> tuple[list[Rollout], str]:
        """Rollouts, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        found = self._catalogue.rollouts(tenant, model, before, count + 1)
        page = found[:count]
        return page, paging.encode_token(page[-1].id) if len(found) > count else ""

    def promote(self, tenant: str, id: str) -> Rollout:
        """Settle a rollout now, whatever it has still to show.

        Raises:
            NotFound
            FailedPrecondition: its version has not answered yet, or it has ended.
        """
        found = _found(self._catalogue.promote_rollout(tenant, id, "promoted by hand"), id)
        return self._changed(found, RolloutState.SETTLED, "promoted")

    def reverse(self, tenant: str, id: str, reason: str) -> Rollout:
        """Go back to the version before.

        Raises:
            NotFound
            FailedPrecondition: it has ended.
        """
        why = f"reversed by hand: {reason}" if reason else "reversed by hand"
        found = _found(self._catalogue.reverse_rollout(tenant, id, why), id)
        return self._changed(found, RolloutState.REVERSED, "reversed")

    def pause(self, tenant: str, id: str, paused: bool) -> Rollout:
        """Keep a rollout where it is, or let it go on; one that fails is reversed all the same.

        Raises:
            NotFound
            FailedPrecondition: it has ended.
        """
        found = _found(self._catalogue.pause_rollout(tenant, id, paused), id)
        state = RolloutState.PENDING if found.state.has_ended else found.state
        return self._changed(found, state, "paused" if paused else "resumed")

    def _changed(self, rollout: Rollout, state: RolloutState, done: str) -> Rollout:
        if rollout.state != state:
            raise FailedPrecondition(
                f"rollout {rollout.id} is {rollout.state} and cannot be {done}",
                reason="ROLLOUT_STATE",
            )
        self._ring()
        self._ring_controller()
        return rollout


def _found(rollout: Rollout | None, id: str) -> Rollout:
    if rollout is None:
        raise NotFound(f"there is no rollout {id}")
    return rollout
