"""Where a request goes: a version by the route's shares, one of its endpoints, and a place there.

Text (``generation.py``) and tensors (``inference.py``) share it, and with it the gateway's maximum,
the endpoints' places, and what is known of their health.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass

from millrace_gateway import route
from millrace_gateway.domain import Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.health import Health
from millrace_gateway.route import Choice, Route, RouteTable, Target
from millrace_runtime.errors import MillraceError

_ROUTE_CHANGE_SECONDS = 1.0
_CHAMPION = "champion"  # the registry's alias of the version that serves


@dataclass(frozen=True)
class Place:
    """One version of a model at one endpoint; ``turn`` is whose it is, once it was taken."""

    route: Route
    choice: Choice
    turn: str = ""

    @property
    def target(self) -> Target:
        return self.choice.target

    @property
    def version(self) -> int:
        return self.choice.target.version

    @property
    def endpoint(self) -> str:
        return self.choice.endpoint

    @property
    def whole_version(self) -> frozenset[Choice]:
        """The version at all of its endpoints."""
        target = self.choice.target
        return frozenset(Choice(target, endpoint) for endpoint in target.endpoints)

    def refuses_alone(self, make_prompt: Callable[[Target], object], incumbent: Target) -> bool:
        """Whether its version has no prompt for a request, where ``incumbent`` has one."""
        return not _has_prompt(make_prompt, self.target) and _has_prompt(make_prompt, incumbent)

    @property
    def identity(self) -> tuple[str, int, str]:
        """Triton's model name, version and endpoint."""
        return self.route.triton_model, self.version, self.endpoint


@dataclass(frozen=True)
class Guest:
    """Who asks for a place.

    Attributes:
        model: as the client wrote it: ``demo``, ``demo@7``, ``demo@champion``.
        turn: among whom turns are taken: keys.
        user: whom the request is for, where it says so.
    """

    tenant: str
    model: str
    priority: Priority
    turn: str
    user: str = ""


class Placement:
    """Chooses places, lets requests in, and notes how the places do.

    Args:
        random_number: in [0, 1), decides among versions by their shares.

    Attributes:
        active: requests that have checked in and not out.
    """

    def __init__(
        self,
        routes: RouteTable,
        entrance: Entrance,
        health: Health,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self.routes = routes
        self.entrance = entrance
        self._health = health
        self._random_number = random_number
        self.active = 0

    async def attend(self, tenant: str, model: str) -> tuple[Route, str]:
        """``RouteTable.find``, but that a model which does not serve yet is given a moment to.

        That a tuning job has succeeded can be known a moment before the route table that the
        model answers by; whoever asks it at once must not be refused.

        Raises:
            MillraceError: as ``RouteTable.find``.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _ROUTE_CHANGE_SECONDS
        while True:
            found, pinned = self.routes.find(tenant, model)
            left = until - loop.time()
            if pinned or found.serving or left <= 0:
                return found, pinned
            await self.routes.wait_for_change(left)

    def check_in(self, priority: Priority) -> None:
        """Count a request, until it checks out.

        Raises:
            ResourceExhausted: the gateway has too many.
        """
        self.entrance.check(self.active, priority)
        self.active += 1

    def check_out(self) -> None:
        self.active -= 1

    def choose(
        self, tenant: str, model: str, failed: Collection[Choice] = (), user: str = ""
    ) -> Place | None:
        """A version by the route's shares, and an endpoint; None when everything has failed.

        While users are split between versions, ``user`` decides, where it is said.

        Raises:
            MillraceError: there is no such model or version, or nothing of it serves.
        """
        found, pinned = self.routes.find(tenant, model)
        choice = route.choose(
            route.candidates(found, pinned),
            route.side(found.split, tenant, user)
            if found.split and user
            else self._random_number(),
            failed,
            self.entrance.in_progress,
            self._health.ejected(found.triton_model),
        )
        return None if choice is None else Place(found, choice)

    def any(self, tenant: str, model: str, user: str = "") -> Place:
        """As ``choose``, when nothing has failed."""
        place = self.choose(tenant, model, user=user)
        assert place is not None, "there are candidates, and nothing is excluded"
        return place

    async def enter(self, guest: Guest, failed: Collection[Choice] = ()) -> Place:
        """Take a place; whoever is given it leaves it.

        When everything has failed, the route table has a moment to change. When the chosen
        endpoint has no place left, the first that comes free at one of its like is taken.

        Raises:
            MillraceError: as ``choose``.
            ResourceExhausted: there is no place, and waiting would take, or took, too long.
        """
        user = guest.user or guest.turn
        place = self.choose(guest.tenant, guest.model, failed, user)
        if place is None:
            await self.routes.wait_for_change(_ROUTE_CHANGE_SECONDS)
            place, failed = self.any(guest.tenant, guest.model, user), ()
        ejected = self._health.ejected(place.route.triton_model)
        alike = route.available(place.target, failed, ejected)
        endpoint = await self.entrance.enter(
            place.endpoint, alike, guest.priority, guest.turn, place.route
        )
        return Place(place.route, Choice(place.target, endpoint), guest.turn)

    def incumbent(self, guest: Guest, place: Place) -> Target | None:
        """The champion, where ``place`` is of a version beside it that is on trial; None otherwise.

        What a version on trial does wrong before its answer has begun, the champion makes good.
        """
        found, pinned = self.routes.find(guest.tenant, guest.model)
        champion = found.aliases.get(_CHAMPION)
        if place.version == champion:
            return None
        serving = route.candidates(found, pinned)
        return next((target for target in serving if target.version == champion), None)

    def leave(self, place: Place) -> None:
        self.entrance.leave(place.endpoint, place.turn)

    def asked(self, place: Place) -> None:
        """A request goes there."""
        self._health.asked(*place.identity)

    def answered(self, place: Place) -> None:
        """It has begun to answer."""
        self._health.answered(*place.identity)

    def failed(self, place: Place) -> None:
        """It failed before it began to answer."""
        self._health.failed(*place.identity)


def _has_prompt(make_prompt: Callable[[Target], object], target: Target) -> bool:
    try:
        make_prompt(target)
    except MillraceError:
        return False
    return True
