"""How the routes are published: from what is desired, and what answers on which endpoint."""

from collections.abc import Collection, Sequence

from millrace_registry.control_store import ControlStore, Desired
from millrace_registry.domain import Route, triton_model_name
from millrace_registry.endpoint_store import Answering
from millrace_registry.memory import Key
from millrace_registry.routing import route_of_model


def publish_routes(
    store: ControlStore, wanted: Sequence[Desired], answering: Collection[Key]
) -> None:
    """Tell gateways what is desired, and ``answering`` on this endpoint or on another one.

    An endpoint that lags behind gets no requests for what it does not answer yet.
    """
    steps = {desired.model.name: store.steps(desired.model) for desired in wanted}

    def routes_of(everywhere: Answering) -> Sequence[Route]:
        return [
            route_of_model(
                desired.model,
                desired.rollouts,
                desired.versions,
                held=desired.held,
                steps=steps[desired.model.name],
                queue_policy=desired.deployment.serving.queue_policy,
                answering=_of_model(everywhere, desired),
            )
            for desired in wanted
        ]

    store.write_routes(answering, routes_of)


def _of_model(everywhere: Answering, desired: Desired) -> dict[int, Sequence[str]]:
    name = triton_model_name(desired.model.tenant, desired.model.id)
    return {number: at for (model, number), at in everywhere.items() if model == name}
