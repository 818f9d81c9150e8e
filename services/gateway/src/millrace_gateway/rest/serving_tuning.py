"""``/v1/deployments/{id}/tune_serving``: the search for settings; ``/v1/models/{m}/traffic``: for
which traffic.

The search is a stream of server-sent events. It goes on as long as somebody reads it: who closes
it ends it, and nothing is changed.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import orjson
from fastapi.responses import StreamingResponse
from google.protobuf import json_format
from pydantic import BaseModel, Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import traffic, upstream
from millrace_gateway.rest import deployments, errors
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import Int32, Number, RequestBody, enum_word
from millrace_runtime.errors import InvalidArgument, MillraceError, Unavailable

ROUTER = router("deployments")

_HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": heartbeat\n\n"
_DONE = b"data: [DONE]\n\n"
_FIELDS = {"traffic.prompt_tokens": "traffic", "traffic.answer_tokens": "traffic"}
_FIGURES = (
    "single_stream_seconds_p90",
    "single_stream_first_token_seconds_p90",
    "offline_tokens_per_second",
    "offline_requests_per_second",
    "server_requests_per_second",
    "server_tokens_per_second",
    "server_first_token_seconds_p99",
    "server_token_seconds_p99",
)

Responses = AsyncIterator[pb.TuneServingResponse]
Tokens = Annotated[Int32, Field(ge=1, le=1_000_000)]
Most = Annotated[Int32, Field(ge=1, le=4096)]


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


class Request(RequestBody):
    prompt_tokens: Tokens
    answer_tokens: Tokens


class TuneServing(RequestBody):
    """What is searched for: most requests a second, with the latency of 99 of 100 within the
    target."""

    latency_target_seconds: Annotated[
        Annotated[Number, Field(gt=0, le=600)], Field(description="To the first token.")
    ] = 1.0
    token_target_seconds: Annotated[
        Annotated[Number, Field(gt=0, le=600)],
        Field(description="Each further token, on average over an answer."),
    ] = 0.2
    traffic: Annotated[
        Annotated[list[Request], Field(min_length=1, max_length=4096)] | None,
        Field(description="Requests to draw from, instead of those that came lately."),
    ] = None
    trials: Annotated[Int32, Field(ge=1, le=100)] = 8
    seconds: Annotated[
        Annotated[Number, Field(ge=0.5, le=600)], Field(description="Of each measurement, about.")
    ] = 4.0
    seed: Annotated[Int32, Field(ge=0)] = 0
    max_instance_count: Annotated[Int32, Field(ge=1, le=16)] | None = None
    max_threads: Annotated[Int32, Field(ge=1, le=1024)] | None = None
    max_cache_gibibytes: Most | None = None
    max_batch_size: Most | None = None
    dry_run: Annotated[bool, Field(description="The winner is told and not written.")] = False
    with_queue: Annotated[
        bool, Field(description="The queue policy that fits the winner is written too.")
    ] = False


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


@ROUTER.post(
    "/v1/deployments/{deployment_id}/tune_serving",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def tune_serving(
    deployment_id: str, body: TuneServing, caller: CallerOf
) -> StreamingResponse:
    """Search for the settings (`serving`) that answer most requests in time, and write them.

    Candidates are loaded one after the other beside the model that serves, where no request can
    reach them, and asked as the recent traffic asked. Events: ``traffic`` once, ``phase``,
    ``trial`` each look, ``result`` at the end. Whoever closes the stream ends the search.
    """
    name = caller.name("deployments", deployment_id, "deployment")
    found = await upstream.call(
        caller.upstream.registry.GetDeployment, pb.GetDeploymentRequest(name=name)
    )
    request, source = _request(body, caller, found.deployment)
    call = caller.upstream.registry.TuneServing(request)
    responses = upstream.stream(call)
    first = await _first(responses)
    return StreamingResponse(
        _told(call, responses, first, source, caller.gateway.draining),
        headers={"cache-control": "no-cache"},
        media_type="text/event-stream",
    )


def _request(
    body: TuneServing, caller: Caller, deployment: pb.Deployment
) -> tuple[pb.TuneServingRequest, dict[str, Any]]:
    """What the registry is asked, and where the traffic's shape is from."""
    seen = caller.gateway.generator.traffic.of(caller.tenant, deployment.model)
    pairs, source = _pairs(body, seen)
    request = pb.TuneServingRequest(
        name=deployment.name,
        traffic=pb.TrafficShape(
            prompt_tokens=[prompt for prompt, _ in pairs],
            answer_tokens=[answer for _, answer in pairs],
            requests_per_second=seen.requests_per_second,
        ),
        first_token_seconds=body.latency_target_seconds,
        token_seconds=body.token_target_seconds,
        trials=body.trials,
        seconds=body.seconds,
        seed=body.seed,
        max_instance_count=body.max_instance_count or 0,
        max_threads=body.max_threads or 0,
        max_cache_gibibytes=body.max_cache_gibibytes or 0,
        max_batch_size=body.max_batch_size or 0,
        dry_run=body.dry_run,
        with_queue=body.with_queue,
    )
    rate = seen.requests_per_second
    return request, {"source": source, "requests": len(pairs), "requests_per_second": rate}


def _pairs(body: TuneServing, seen: traffic.Summary) -> tuple[list[tuple[int, int]], str]:
    if body.traffic is not None:
        return [(one.prompt_tokens, one.answer_tokens) for one in body.traffic], "given"
    if seen.is_enough:
        return [(one.prompt_tokens, one.answer_tokens) for one in seen.requests], "recent"
    return [], "default"


async def _first(responses: Responses) -> pb.TuneServingResponse:
    """Wait for it, so that what is refused is an answer's status.

    Raises:
        MillraceError
    """
    try:
        return await anext(responses)
    except StopAsyncIteration:
        raise Unavailable("the registry ended the search", reason="SERVICE_UNAVAILABLE") from None
    except InvalidArgument as error:
        raise upstream.renamed(error, _FIELDS) from error


async def _told(
    call: Any,
    responses: Responses,
    first: pb.TuneServingResponse,
    source: dict[str, Any],
    draining: asyncio.Event,
) -> AsyncIterator[bytes]:
    try:
        yield _event("traffic", source)
        yield _news(first)
        async for response in _until(responses, draining):
            yield _HEARTBEAT if response is None else _news(response)
        yield _DONE
    except MillraceError as error:
        yield b"event: error\ndata: " + orjson.dumps(errors.document(error)) + b"\n\n"
    finally:
        call.cancel()


async def _until(
    responses: Responses, draining: asyncio.Event
) -> AsyncIterator[pb.TuneServingResponse | None]:
    """The responses, with None where none comes for a while.

    Raises:
        MillraceError: it broke off, or the gateway stops.
    """
    stopping = asyncio.ensure_future(draining.wait())
    coming = asyncio.ensure_future(anext(responses, None))
    try:
        while not stopping.done():
            waited = {coming, stopping}
            await asyncio.wait(
                waited, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not coming.done():
                yield None
                continue
            if (response := coming.result()) is None:
                return
            yield response
            coming = asyncio.ensure_future(anext(responses, None))
        raise Unavailable(
            "the gateway restarts; nothing was changed, begin again", reason="RESTARTING"
        )
    finally:
        stopping.cancel()
        coming.cancel()
        await asyncio.gather(stopping, coming, return_exceptions=True)


def _news(response: pb.TuneServingResponse) -> bytes:
    kind = response.WhichOneof("news")
    if kind == "phase":
        return _event("phase", {"phase": response.phase})
    if kind == "trial":
        return _event("trial", _trial(response.trial))
    result = response.result
    document = {
        "winner": result.winner,
        "is_better": result.is_better,
        "is_written": result.is_written,
        "reason": result.reason,
        "noise": result.noise,
        "queue_policy": json_format.MessageToDict(
            result.queue_policy, preserving_proto_field_name=True
        )
        or None,
        "deployment": deployments.deployment_object(result.deployment).model_dump(),
    }
    return _event("result", document)


def _trial(trial: pb.ServingTrial) -> dict[str, Any]:
    figures = {
        name: getattr(trial, name) if trial.HasField(name) else None  # type: ignore[arg-type]
        for name in _FIGURES
    }
    return {
        "number": trial.number,
        "kind": enum_word(pb.ServingTrial.Kind, trial.kind, "KIND_"),
        "status": enum_word(pb.ServingTrial.State, trial.state, "STATE_"),
        "reason": trial.reason or None,
        "serving": deployments.served_as(trial.serving).model_dump(),
        "load_seconds": trial.load_seconds,
        **figures,
    }


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(document))


def _percentiles(values: list[int]) -> Percentiles | None:
    if not values:
        return None
    ranked = sorted(values)
    return Percentiles(
        **{f"p{share}": ranked[-(-share * len(ranked) // 100) - 1] for share in (50, 90, 99)}
    )
