"""``/v1/serving_tunings``: searches for the settings that answer most requests in time;
``/v1/models/{m}/traffic``: for which traffic.

A search is the registry's, and goes on whoever listens. ``/v1/deployments/{id}/tune_serving`` makes
one and tells of it in the same call.
"""

from typing import Annotated, Any, Literal

from fastapi import Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from millrace.registry.v1 import service_pb2
from millrace.registry.v1 import serving_tunings_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.serving_tuning_events import Teller, tell
from millrace_gateway.rest.serving_tuning_shapes import (
    FIELDS,
    Report,
    ServingTuning,
    TuneServing,
    report_object,
    search_message,
    tuning_object,
)

ROUTER = router("serving-tunings")

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


class Percentiles(BaseModel):
    p50: int
    p90: int
    p99: int


class Traffic(BaseModel):
    """``is_enough``: a search is shaped like it, where nothing else is asked for."""

    model: str
    object: Literal["model.traffic"] = "model.traffic"
    requests: int
    seconds: float
    requests_per_second: float
    prompt_tokens: Percentiles | None
    answer_tokens: Percentiles | None
    is_enough: bool


@ROUTER.get("/v1/models/{model}/traffic", response_model=Traffic, tags=["models"])
async def get_traffic(model: str, caller: CallerOf) -> Traffic:
    """How long and how frequent this gateway's last requests to the model were (at most 1,024)."""
    named = caller.gateway.generator.routes.named(caller.tenant, model)
    seen = caller.gateway.generator.traffic.of(named.route.tenant, named.route.model)
    return Traffic(
        model=named.route.model,
        requests=len(seen.requests),
        seconds=seen.seconds,
        requests_per_second=seen.requests_per_second,
        prompt_tokens=_percentiles([one.prompt_tokens for one in seen.requests]),
        answer_tokens=_percentiles([one.answer_tokens for one in seen.requests]),
        is_enough=seen.is_enough,
    )


@ROUTER.post("/v1/deployments/{deployment_id}/serving_tunings", response_model=ServingTuning)
async def create_serving_tuning(
    deployment_id: str, body: TuneServing, caller: CallerOf
) -> ServingTuning:
    """Search for the settings (`serving`) that answer most requests in time, and write them.

    Candidates are loaded one after the other beside the model that serves, where no request can
    reach them, and asked as the recent traffic asked. It goes on by itself; a deployment has one
    search at a time (409).
    """
    return tuning_object(await _create(caller, deployment_id, body))


@ROUTER.get(
    "/v1/deployments/{deployment_id}/serving_tunings", response_model=ListObject[ServingTuning]
)
async def list_serving_tunings_of_deployment(
    deployment_id: str, caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    return await _page(caller, deployment_id, after, limit)


@ROUTER.get("/v1/serving_tunings", response_model=ListObject[ServingTuning])
async def list_serving_tunings(
    caller: CallerOf,
    deployment: Annotated[str, Query(description="Only this deployment's.")] = "",
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Newest first, without their trials."""
    return await _page(caller, deployment, after, limit)


@ROUTER.get("/v1/serving_tunings/{tuning_id}", response_model=ServingTuning)
async def get_serving_tuning(tuning_id: str, caller: CallerOf) -> ServingTuning:
    return tuning_object(await _get(caller, tuning_id))


@ROUTER.post("/v1/serving_tunings/{tuning_id}/cancel", response_model=ServingTuning)
async def cancel_serving_tuning(tuning_id: str, caller: CallerOf) -> ServingTuning:
    """End a search; the deployment stays as it is. One that has ended is not changed."""
    request = pb.CancelServingTuningRequest(name=_name(caller, tuning_id))
    response = await upstream.call(caller.upstream.serving_tunings.CancelServingTuning, request)
    return tuning_object(response.serving_tuning)


@ROUTER.get(
    "/v1/serving_tunings/{tuning_id}/events",
    response_class=StreamingResponse,
    responses=_STREAM,
)
async def watch_serving_tuning(
    tuning_id: str,
    caller: CallerOf,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^[0-9]{1,6}$", description="Go on after this trial.")
    ] = None,
) -> StreamingResponse:
    """A search from its beginning on, as it comes, until it ends.

    Events: ``serving_tuning`` and ``traffic`` once, ``phase``, ``trial`` each look (its id is the
    trial's number), ``result`` at the end, or ``error``. It may break off when a gateway is
    restarted: ask again with ``Last-Event-ID``, as browsers do by themselves.
    """
    tuning = await _get(caller, tuning_id)
    return _told(caller, tuning, Teller(int(last_event_id) if last_event_id else -1))


@ROUTER.get("/v1/serving_tunings/{tuning_id}/report", response_model=Report)
async def get_serving_tuning_report(tuning_id: str, caller: CallerOf) -> Report:
    """The present settings beside the best candidate in each scenario, and how sure that is."""
    return report_object(await _report(caller, tuning_id, with_plot=False))


@ROUTER.get(
    "/v1/serving_tunings/{tuning_id}/report.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}, "description": "The plot."}},
)
async def get_serving_tuning_plot(tuning_id: str, caller: CallerOf) -> Response:
    """Requests a second over the time to the first token, a mark each trial."""
    found = await _report(caller, tuning_id, with_plot=True)
    return Response(found.plot, media_type="image/svg+xml")


@ROUTER.post(
    "/v1/deployments/{deployment_id}/tune_serving",
    response_class=StreamingResponse,
    responses=_STREAM,
    tags=["deployments"],
)
async def tune_serving(
    deployment_id: str, body: TuneServing, caller: CallerOf
) -> StreamingResponse:
    """Make a search (see ``serving_tunings``) and watch it.

    Events: as those of ``/v1/serving_tunings/{id}/events``. Who closes the stream leaves the search
    running.
    """
    tuning = await _create(caller, deployment_id, body)
    return _told(caller, tuning, Teller())


async def _create(caller: Caller, deployment_id: str, body: TuneServing) -> pb.ServingTuning:
    name = caller.name("deployments", deployment_id, "deployment")
    found = await upstream.call(
        caller.upstream.registry.GetDeployment, service_pb2.GetDeploymentRequest(name=name)
    )
    seen = caller.gateway.generator.traffic.of(caller.tenant, found.deployment.model)
    request = pb.CreateServingTuningRequest(
        search=search_message(body, found.deployment, seen), request_id=caller.request_id
    )
    response = await upstream.call(
        caller.upstream.serving_tunings.CreateServingTuning, request, FIELDS
    )
    return response.serving_tuning


async def _get(caller: Caller, tuning_id: str) -> pb.ServingTuning:
    request = pb.GetServingTuningRequest(name=_name(caller, tuning_id))
    response = await upstream.call(caller.upstream.serving_tunings.GetServingTuning, request)
    return response.serving_tuning


async def _page(
    caller: Caller, deployment_id: str, after: str | None, limit: int
) -> dict[str, Any]:
    of_one = caller.name("deployments", deployment_id, "deployment") if deployment_id else ""
    request = pb.ListServingTuningsRequest(
        parent=caller.parent,
        page_size=page_size(limit),
        page_token=token_after(after),
        deployment=of_one,
    )
    response = await upstream.call(caller.upstream.serving_tunings.ListServingTunings, request)
    items = [tuning_object(tuning) for tuning in response.serving_tunings]
    return page_of(items, bool(response.next_page_token))


async def _report(
    caller: Caller, tuning_id: str, *, with_plot: bool
) -> pb.GetServingTuningReportResponse:
    name = _name(caller, tuning_id)
    request = pb.GetServingTuningReportRequest(name=name, with_plot=with_plot)
    return await upstream.call(caller.upstream.serving_tunings.GetServingTuningReport, request)


def _name(caller: Caller, tuning_id: str) -> str:
    return caller.name("serving_tunings", tuning_id, "serving tuning")


def _told(caller: Caller, tuning: pb.ServingTuning, teller: Teller) -> StreamingResponse:
    registry, draining = caller.upstream.serving_tunings, caller.gateway.draining
    return StreamingResponse(
        tell(registry, tuning.name, tuning, teller, draining),
        headers={"cache-control": "no-cache"},
        media_type="text/event-stream",
    )


def _percentiles(values: list[int]) -> Percentiles | None:
    if not values:
        return None
    ranked = sorted(values)
    return Percentiles(
        **{f"p{share}": ranked[-(-share * len(ranked) // 100) - 1] for share in (50, 90, 99)}
    )
