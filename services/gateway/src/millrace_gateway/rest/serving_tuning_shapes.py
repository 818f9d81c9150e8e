"""A search for settings in JSON: what is asked, what was measured, what came of it."""

from typing import Annotated, Any, Literal

from google.protobuf import json_format
from pydantic import BaseModel, Field

from millrace.registry.v1 import service_pb2
from millrace.registry.v1 import serving_tunings_pb2 as pb
from millrace_gateway import traffic
from millrace_gateway.rest import deployments
from millrace_gateway.rest.shapes import (
    STATUS_OF_STATE,
    Failure,
    Int32,
    Number,
    Progress,
    RequestBody,
    enum_word,
    failure,
    identifier,
    progress,
    seconds,
    seconds_or_none,
)

FIELDS = {
    "search.traffic.prompt_tokens": "traffic",
    "search.traffic.answer_tokens": "traffic",
    "request_id": "idempotency-key",
}
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
_SOURCES = service_pb2.TrafficShape.Source

Tokens = Annotated[Int32, Field(ge=1, le=1_000_000)]
Most = Annotated[Int32, Field(ge=1, le=4096)]


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


class SearchTraffic(BaseModel):
    """Of which ``requests`` the load is drawn: the gateway's ``recent`` ones, those that were
    ``given``, or (0) the ``default`` of 64 tokens asked and 32 answered."""

    source: str
    requests: int
    requests_per_second: float


class Search(BaseModel):
    """What was asked for."""

    latency_target_seconds: float
    token_target_seconds: float
    trials: int
    seconds: float
    seed: int
    max_instance_count: int | None
    max_threads: int | None
    max_cache_gibibytes: int | None
    max_batch_size: int | None
    dry_run: bool
    with_queue: bool


class Trial(BaseModel):
    """One look at one set of settings, in the scenarios of MLPerf Inference."""

    number: int
    kind: str
    status: str
    reason: str | None
    serving: deployments.ServedAs
    load_seconds: float
    single_stream_seconds_p90: float | None
    single_stream_first_token_seconds_p90: float | None
    offline_tokens_per_second: float | None
    offline_requests_per_second: float | None
    server_requests_per_second: float | None
    server_tokens_per_second: float | None
    server_first_token_seconds_p99: float | None
    server_token_seconds_p99: float | None


class Result(BaseModel):
    """``winner``: a trial's number. ``deployment``: as it is now; null in lists."""

    winner: int
    is_better: bool
    is_written: bool
    reason: str
    noise: float
    queue_policy: dict[str, Any] | None
    deployment: deployments.Deployment | None


class ServingTuning(BaseModel):
    """A search for the settings that answer most requests in time. ``trials``: empty in lists."""

    id: str
    object: Literal["serving_tuning"] = "serving_tuning"
    created_at: int
    started_at: int | None
    finished_at: int | None
    deployment: str
    model: str
    version: int | None
    status: str
    progress: Progress | None
    error: Failure | None
    search: Search
    traffic: SearchTraffic
    trials: list[Trial]
    result: Result | None


class Figure(BaseModel):
    """One figure of one scenario: the present settings beside the best candidate, a look each."""

    scenario: str
    name: str
    unit: str
    present: float | None
    best: float | None


class Comparison(BaseModel):
    """Requests a second within the target, each look at the present settings and at the best
    candidate. All looks at it must be above ``needed`` for it to win; ``gain`` lies between
    ``gain_low`` and ``gain_high`` with ``confidence``."""

    present: list[float]
    best: list[float]
    best_trial: int | None
    needed: float
    noise: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    confidence: float


class Report(BaseModel):
    """What was measured, and what that says. ``comparison``: null before the first look."""

    object: Literal["serving_tuning.report"] = "serving_tuning.report"
    serving_tuning: ServingTuning
    conclusion: str
    figures: list[Figure]
    comparison: Comparison | None


def search_message(
    body: TuneServing, deployment: service_pb2.Deployment, seen: traffic.Summary
) -> service_pb2.TuneServingRequest:
    """What the registry is asked; ``seen``: the gateway's last requests to the model."""
    pairs, source = _pairs(body, seen)
    return service_pb2.TuneServingRequest(
        name=deployment.name,
        traffic=service_pb2.TrafficShape(
            prompt_tokens=[prompt for prompt, _ in pairs],
            answer_tokens=[answer for _, answer in pairs],
            requests_per_second=seen.requests_per_second,
            source=source,
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


def _pairs(
    body: TuneServing, seen: traffic.Summary
) -> tuple[list[tuple[int, int]], service_pb2.TrafficShape.Source.ValueType]:
    shape = service_pb2.TrafficShape
    if body.traffic is not None:
        given = [(one.prompt_tokens, one.answer_tokens) for one in body.traffic]
        return given, shape.SOURCE_GIVEN
    if seen.is_enough:
        recent = [(one.prompt_tokens, one.answer_tokens) for one in seen.requests]
        return recent, shape.SOURCE_RECENT
    return [], shape.SOURCE_DEFAULT


def tuning_object(message: pb.ServingTuning) -> ServingTuning:
    return ServingTuning(
        id=identifier(message.name) or "",
        created_at=seconds(message.create_time),
        started_at=seconds_or_none(message, "start_time"),
        finished_at=seconds_or_none(message, "finish_time"),
        deployment=identifier(message.deployment) or "",
        model=message.model,
        version=message.version or None,
        status=STATUS_OF_STATE[message.state],
        progress=progress(message.progress),
        error=failure(message.failure),
        search=_search(message.search),
        traffic=traffic_object(message),
        trials=[trial_object(trial) for trial in message.trials],
        result=result_object(message.result) if message.HasField("result") else None,
    )


def traffic_object(message: pb.ServingTuning) -> SearchTraffic:
    return SearchTraffic(
        source=enum_word(_SOURCES, message.search.traffic.source, "SOURCE_"),
        requests=message.traffic_requests,
        requests_per_second=message.search.traffic.requests_per_second,
    )


def trial_object(trial: service_pb2.ServingTrial) -> Trial:
    figures = {
        name: getattr(trial, name) if trial.HasField(name) else None  # type: ignore[arg-type]
        for name in _FIGURES
    }
    return Trial(
        number=trial.number,
        kind=enum_word(service_pb2.ServingTrial.Kind, trial.kind, "KIND_"),
        status=enum_word(service_pb2.ServingTrial.State, trial.state, "STATE_"),
        reason=trial.reason or None,
        serving=deployments.served_as(trial.serving),
        load_seconds=trial.load_seconds,
        **figures,
    )


def result_object(result: service_pb2.ServingResult) -> Result:
    policy = json_format.MessageToDict(result.queue_policy, preserving_proto_field_name=True)
    has_deployment = result.HasField("deployment")
    return Result(
        winner=result.winner,
        is_better=result.is_better,
        is_written=result.is_written,
        reason=result.reason,
        noise=result.noise,
        queue_policy=policy or None,
        deployment=deployments.deployment_object(result.deployment) if has_deployment else None,
    )


def report_object(message: pb.GetServingTuningReportResponse) -> Report:
    has_comparison = message.HasField("comparison")
    return Report(
        serving_tuning=tuning_object(message.serving_tuning),
        conclusion=message.conclusion,
        figures=[_figure(figure) for figure in message.figures],
        comparison=_comparison(message.comparison) if has_comparison else None,
    )


def _search(message: service_pb2.TuneServingRequest) -> Search:
    return Search(
        latency_target_seconds=message.first_token_seconds,
        token_target_seconds=message.token_seconds,
        trials=message.trials,
        seconds=message.seconds,
        seed=message.seed,
        max_instance_count=message.max_instance_count or None,
        max_threads=message.max_threads or None,
        max_cache_gibibytes=message.max_cache_gibibytes or None,
        max_batch_size=message.max_batch_size or None,
        dry_run=message.dry_run,
        with_queue=message.with_queue,
    )


def _figure(message: pb.ServingFigure) -> Figure:
    return Figure(
        scenario=enum_word(pb.ServingFigure.Scenario, message.scenario, "SCENARIO_"),
        name=message.name,
        unit=message.unit,
        present=message.present if message.HasField("present") else None,
        best=message.best if message.HasField("best") else None,
    )


def _comparison(message: pb.ServingComparison) -> Comparison:
    return Comparison(
        present=list(message.present),
        best=list(message.best),
        best_trial=message.best_trial if message.HasField("best_trial") else None,
        needed=message.needed,
        noise=message.noise,
        gain=message.gain if message.HasField("gain") else None,
        gain_low=message.gain_low if message.HasField("gain_low") else None,
        gain_high=message.gain_high if message.HasField("gain_high") else None,
        confidence=message.confidence,
    )
