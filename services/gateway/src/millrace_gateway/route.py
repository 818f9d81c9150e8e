"""Which version answers a request, and where: the route table, and a pure choice from it."""

import asyncio
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from millrace_gateway.wishes import Wish, Wishes
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable

# By (version, endpoint): until when it is not to be asked, on a monotonic clock.
Ejected: TypeAlias = Mapping[tuple[int, str], float]
_NO_LOADS: Mapping[str, int] = MappingProxyType({})
_NONE_EJECTED: Ejected = MappingProxyType({})
_OF_STEP = re.compile(r"(?P<model>.+):ckpt-step-(?P<step>[0-9]{1,18})")
_MOST_STEPS_TOLD = 20


@dataclass(frozen=True)
class QueuePolicy:
    """How requests to a model wait for a place; None: as the gateway's settings say.

    Attributes:
        max_queue_size: how many of them may wait, at all gateways together.
        default_timeout_seconds: how long each may.
    """

    max_queue_size: int | None = None
    default_timeout_seconds: float | None = None


@dataclass(frozen=True)
class Target:
    """Where one version answers.

    Attributes:
        share: of the requests to the model, in [0, 1]; at 0 the version is loaded, and reached
            by ``model@version`` or its checkpoint's step alone.
        endpoints: host:port of Triton gRPC endpoints, all alike.
        context_length: longest sequence, prompt and answer together, in tokens.
        chat_template: Jinja source; empty when the model has none.
        other_tokens: special tokens that the template may use, with their names.
        traceparent: of the rollout that brought the version; may be empty.
        mirror_share: of the requests to the model, how many are copied to it.
    """

    version: int
    share: float
    endpoints: tuple[str, ...]
    artifact_digest: str = ""
    context_length: int = 0
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    other_tokens: tuple[tuple[str, str], ...] = ()
    traceparent: str = ""
    mirror_share: float = 0.0


@dataclass(frozen=True)
class Route:
    """How one model is reached. The shares of its targets add up to 1 while it is served.

    ``steps``: of its checkpoints, each with the newest version made of it, loaded or not.
    ``split``: while users are split between versions, what their side is drawn with.
    """

    tenant: str
    model: str
    triton_model: str
    targets: tuple[Target, ...]
    created_seconds: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[int, int] = field(default_factory=dict)
    queue_policy: QueuePolicy = QueuePolicy()
    split: str = ""

    @property
    def serving(self) -> Sequence[Target]:
        """The targets that answer requests which name no version."""
        return [target for target in self.targets if target.share > 0 and target.endpoints]

    def has_loaded(self, version: int) -> bool:
        return any(target.version == version and target.endpoints for target in self.targets)


@dataclass(frozen=True)
class Named:
    """What a model's name means.

    Attributes:
        pinned: a version's number or an alias; empty when the name leaves that open.
        is_step: the version was named by its checkpoint's step.
    """

    route: Route
    pinned: str
    is_step: bool = False


@dataclass(frozen=True)
class Choice:
    """One version at one endpoint."""

    target: Target
    endpoint: str


def candidates(route: Route, pinned: str) -> Sequence[Target]:
    """The targets that a request may go to: those that serve, or the one that it names.

    Args:
        pinned: what stood after ``@``: a version's number or an alias; empty when nothing did.

    Raises:
        NotFound: that version is not loaded.
        Unavailable: the model is known and nothing of it serves yet.
    """
    if not pinned:
        serving = route.serving
        if not serving:
            raise Unavailable(
                f"model {route.model!r} is being loaded; try again in a moment",
                reason="MODEL_LOADING",
                field="model",
            )
        return serving
    version = int(pinned) if pinned.isdecimal() else route.aliases.get(pinned, 0)
    for target in route.targets:
        if target.version == version and target.endpoints:
            return [target]
    loaded = ", ".join(f"{route.model}@{target.version}" for target in route.targets)
    raise NotFound(
        f"model {route.model!r} has no loaded version or alias {pinned!r}; loaded: {loaded}",
        reason="MODEL_NOT_FOUND",
        field="model",
    )


def choose(
    targets: Sequence[Target],
    random: float,
    failed: Collection[Choice] = (),
    loads: Mapping[str, int] = _NO_LOADS,
    ejected: Ejected = _NONE_EJECTED,
) -> Choice | None:
    """Choose by share, then the endpoint with the least to do; None when everything has failed.

    Deterministic: ``random`` in [0, 1) decides alone among what is equal. Its place within the
    chosen target's share decides the endpoint, so that one random number suffices.

    Args:
        failed: not to be chosen at all.
        loads: generations in progress by endpoint.
        ejected: see ``available``. Shares are kept to: a version whose endpoints all fail is
            asked still, so that whoever judges it hears of it.
    """
    weighted = [
        # A single target is taken whatever its share: it was named by its version.
        (target, endpoints, target.share if len(targets) > 1 else 1.0)
        for target in targets
        if (endpoints := available(target, failed, ejected))
    ]
    place = random * sum(weight for _, _, weight in weighted)
    for index, (target, endpoints, weight) in enumerate(weighted):
        if place < weight or index == len(weighted) - 1:
            within = min(place / weight, 1.0) if weight else 0.0
            return Choice(target, _least_loaded(endpoints, within, loads))
        place -= weight
    return None


def side(split: str, tenant: str, user: str) -> float:
    """Where a user stands in an A/B test: in [0, 1), always the same for one test."""
    digest = hashlib.sha256(f"{split}/{tenant}/{user}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def available(
    target: Target, failed: Collection[Choice] = (), ejected: Ejected = _NONE_EJECTED
) -> Sequence[str]:
    """The endpoints that may be asked: those that are not ejected, or else the least bad one."""
    open_endpoints: Sequence[str] = target.endpoints
    if failed:
        open_endpoints = [
            endpoint for endpoint in open_endpoints if Choice(target, endpoint) not in failed
        ]
    if not ejected or not open_endpoints:
        return open_endpoints
    places = [(target.version, endpoint) for endpoint in open_endpoints]
    good = [endpoint for version, endpoint in places if (version, endpoint) not in ejected]
    return good or [min(places, key=ejected.__getitem__)[1]]


def _least_loaded(endpoints: Sequence[str], within: float, loads: Mapping[str, int]) -> str:
    """One of those with the least in progress; ``within`` in [0, 1] says which."""
    if loads and len(endpoints) > 1:
        least = min(loads.get(endpoint, 0) for endpoint in endpoints)
        endpoints = [endpoint for endpoint in endpoints if loads.get(endpoint, 0) == least]
    return endpoints[min(int(within * len(endpoints)), len(endpoints) - 1)]


class RouteTable:
    """The registry's route table as last seen; kept while the registry is away."""

    def __init__(self) -> None:
        self.revision = -1
        self.wishes = Wishes()
        self._routes: dict[tuple[str, str], Route] = {}
        self._shared: Mapping[tuple[str, str], str] = {}
        self._changed = asyncio.Event()
        self.known = asyncio.Event()

    def replace(self, revision: int, routes: Sequence[Route]) -> None:
        self.revision = revision
        self._routes = {(route.tenant, route.model): route for route in routes}
        self.known.set()
        self._changed.set()
        self._changed = asyncio.Event()

    def share(self, shared: Mapping[tuple[str, str], str]) -> None:
        """Let tenants use names of others' models: (tenant, name) -> whose model it is."""
        self._shared = shared

    def shared_with(self, tenant: str) -> Sequence[str]:
        """The names of others' models that a tenant may use."""
        return sorted(name for known, name in self._shared if known == tenant)

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Return when the table has been replaced, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    def of_tenant(self, tenant: str) -> Sequence[Route]:
        """A tenant's routes, by model id."""
        ours = [route for (owner, _), route in self._routes.items() if owner == tenant]
        return sorted(ours, key=lambda route: route.model)

    def find(self, tenant: str, reference: str) -> tuple[Route, str]:
        """The route that a model's name means, and which version of it: ``Named.pinned``.

        A version that is named by its checkpoint's step is kept loaded from now on.

        Raises:
            NotFound: the tenant has no such model in service, or it has no such checkpoint.
            InvalidArgument: a step and a version are named.
            Unavailable: the registry has not said yet what there is, or the version is not loaded.
        """
        found = self.named(tenant, reference)
        if found.is_step:
            wish = Wish(found.route.tenant, found.route.model, int(found.pinned))
            self.wishes.add(wish)
            if not found.route.has_loaded(wish.version):
                raise Unavailable(
                    self.wishes.refusal(wish)
                    or f"{reference} is being loaded; try again in a moment",
                    reason="MODEL_LOADING",
                    field="model",
                )
        return found.route, found.pinned

    def named(self, tenant: str, reference: str) -> Named:
        """What ``model``, ``model@version-or-alias`` or ``model:ckpt-step-N`` means.

        Another tenant's model is meant by exactly the name that is shared, and no other.

        Raises:
            MillraceError: as ``find``, but for a version that is not loaded.
        """
        if self.revision < 0:
            raise Unavailable(
                "the gateway has just started and knows no routes yet; try again in a moment",
                reason="ROUTES_UNKNOWN",
            )
        found = self._named(tenant, reference)
        if found is None and (owner := self._shared.get((tenant, reference))):
            found = self._named(owner, reference)
        if found is None:
            model = reference.partition("@")[0]
            own = [known.model for known in self.of_tenant(tenant)]
            served = ", ".join((*own, *self.shared_with(tenant))) or "none yet"
            raise NotFound(
                f"the model {model!r} does not exist or is not served; served: {served}",
                reason="MODEL_NOT_FOUND",
                field="model",
            )
        return found

    def _named(self, tenant: str, reference: str) -> Named | None:
        """What a name means among a tenant's own models; None when it is none of theirs."""
        model, _, pinned = reference.partition("@")
        route = self._routes.get((tenant, model))
        if route is None and (parts := _OF_STEP.fullmatch(model)):
            route = self._routes.get((tenant, parts["model"]))
            if route is not None:
                return Named(route, _version_of_step(route, int(parts["step"]), pinned), True)
        return None if route is None else Named(route, pinned)


def _version_of_step(route: Route, step: int, pinned: str) -> str:
    if pinned:
        raise InvalidArgument("name a checkpoint's step or a version, and not both", field="model")
    version = route.steps.get(step)
    if version is None:
        newest = sorted(route.steps, reverse=True)[:_MOST_STEPS_TOLD]
        known = ", ".join(str(known) for known in newest) or "none yet"
        raise NotFound(
            f"model {route.model!r} has no checkpoint of step {step} that can be asked; newest "
            f"steps: {known}",
            reason="MODEL_NOT_FOUND",
            field="model",
        )
    return str(version)
