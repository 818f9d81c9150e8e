"""Which version answers a request, and where: the route table, and a pure choice from it."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from millrace_runtime.errors import NotFound, Unavailable


@dataclass(frozen=True)
class Target:
    """Where one version answers.

    Attributes:
        share: of the requests to the model, in [0, 1]; at 0 the version is loaded, and reached
            by ``model@version`` alone.
        endpoints: host:port of Triton gRPC endpoints, all alike.
        context_length: longest sequence, prompt and answer together, in tokens.
        chat_template: Jinja source; empty when the model has none.
        traceparent: of the rollout that brought the version; may be empty.
    """

    version: int
    share: float
    endpoints: tuple[str, ...]
    artifact_digest: str = ""
    context_length: int = 0
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    traceparent: str = ""


@dataclass(frozen=True)
class Route:
    """How one model is reached. The shares of its targets add up to 1 while it is served."""

    tenant: str
    model: str
    triton_model: str
    targets: tuple[Target, ...]
    created_seconds: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)


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
        serving = [target for target in route.targets if target.share > 0 and target.endpoints]
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
    targets: Sequence[Target], random: float, failed: Collection[Choice] = ()
) -> Choice | None:
    """Choose by share, then an endpoint evenly; None when everything has failed before.

    Deterministic: ``random`` in [0, 1) decides alone. Its place within the chosen target's
    share decides the endpoint, so that one random number suffices.
    """
    open_choices = {
        target.version: [
            choice
            for endpoint in target.endpoints
            if (choice := Choice(target, endpoint)) not in failed
        ]
        for target in targets
    }
    weighted = [
        # A single target is taken whatever its share: it was named by its version.
        (open_choices[target.version], target.share if len(targets) > 1 else 1.0)
        for target in targets
        if open_choices[target.version]
    ]
    place = random * sum(weight for _, weight in weighted)
    for index, (choices, weight) in enumerate(weighted):
        if place < weight or index == len(weighted) - 1:
            within = min(place / weight, 1.0) if weight else 0.0
            return choices[min(int(within * len(choices)), len(choices) - 1)]
        place -= weight
    return None


class RouteTable:
    """The registry's route table as last seen; kept while the registry is away."""

    def __init__(self) -> None:
        self.revision = -1
        self._routes: dict[tuple[str, str], Route] = {}
        self._changed = asyncio.Event()
        self.known = asyncio.Event()

    def replace(self, revision: int, routes: Sequence[Route]) -> None:
        self.revision = revision
        self._routes = {(route.tenant, route.model): route for route in routes}
        self.known.set()
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Return when the table has been replaced, or after the timeout."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        except TimeoutError:
            return

    def of_tenant(self, tenant: str) -> Sequence[Route]:
        """A tenant's routes, by model id."""
        ours = [route for (owner, _), route in self._routes.items() if owner == tenant]
        return sorted(ours, key=lambda route: route.model)

    def find(self, tenant: str, reference: str) -> tuple[Route, str]:
        """The route that ``model`` or ``model@version-or-alias`` means, and what follows ``@``.

        Raises:
            NotFound: the tenant has no such model in service.
            Unavailable: the registry has not said yet what there is.
        """
        if self.revision < 0:
            raise Unavailable(
                "the gateway has just started and knows no routes yet; try again in a moment",
                reason="ROUTES_UNKNOWN",
            )
        model, _, pinned = reference.partition("@")
        route = self._routes.get((tenant, model))
        if route is None:
            served = ", ".join(known.model for known in self.of_tenant(tenant)) or "none yet"
            raise NotFound(
                f"the model {model!r} does not exist or is not served; served: {served}",
                reason="MODEL_NOT_FOUND",
                field="model",
            )
        return route, pinned
