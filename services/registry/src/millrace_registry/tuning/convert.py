"""Between searches for settings and their protos: ``serving_tunings.proto``, TuneServing."""

import math
from dataclasses import asdict

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2
from millrace.registry.v1 import serving_tunings_pb2 as pb
from millrace_registry import convert
from millrace_registry.domain import Deployment
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.report import CONFIDENCE, Comparison, Figure, Report
from millrace_registry.tuning.resource import Result, ServingTuning, State, Wish
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial import Trial
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

_NAME = "tenants/{tenant}/serving_tunings/{serving_tuning}"
_STATES = {s: lifecycle_pb2.WorkState.Value(f"WORK_STATE_{s.value}") for s in State}
_SOURCE = service_pb2.TrafficShape.Source


def tuning_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a search's name."""
    parts = names.parse(_NAME, name)
    return parts["tenant"], parts["serving_tuning"]


def wish_from_proto(request: service_pb2.TuneServingRequest) -> Wish:
    """
    Raises:
        InvalidArgument: prompts and answers are not as many.
    """
    prompts, answers = request.traffic.prompt_tokens, request.traffic.answer_tokens
    if len(prompts) != len(answers):
        raise InvalidArgument(
            f"{len(prompts)} prompts and {len(answers)} answers: each prompt has its answer",
            field="search.traffic.answer_tokens",
        )
    return Wish(
        target=Target(request.first_token_seconds, request.token_seconds),
        traffic=tuple(zip(prompts, answers, strict=True)),
        requests_per_second=request.traffic.requests_per_second,
        source=_SOURCE.Name(request.traffic.source),
        trials=request.trials,
        seconds=request.seconds,
        seed=request.seed,
        limits=Limits(
            instance_count=request.max_instance_count,
            threads=request.max_threads,
            cache_gibibytes=request.max_cache_gibibytes,
            max_batch_size=request.max_batch_size,
        ),
        is_dry_run=request.dry_run,
        with_queue=request.with_queue,
    )


def tuning_to_proto(
    tuning: ServingTuning, deployment: Deployment | None = None
) -> pb.ServingTuning:
    """``deployment``: as it is now; None in lists."""
    message = pb.ServingTuning(
        name=tuning.name,
        deployment=_deployment_name(tuning),
        model=tuning.model,
        state=_STATES[tuning.state],
        progress=lifecycle_pb2.Progress(**asdict(tuning.progress)),
        search=_wish_to_proto(tuning),
        traffic_requests=len(tuning.wish.traffic),
        version=tuning.plan.version if tuning.plan else 0,
        trials=map(trial_to_proto, tuning.trials),
        create_time=convert.timestamp(tuning.create_time),
    )
    if tuning.failure:
        message.failure.reason = tuning.failure.reason
        message.failure.message = tuning.failure.message
    if tuning.result:
        message.result.CopyFrom(result_to_proto(tuning.result, deployment))
    if tuning.start_time:
        message.start_time.CopyFrom(convert.timestamp(tuning.start_time))
    if tuning.finish_time:
        message.finish_time.CopyFrom(convert.timestamp(tuning.finish_time))
    return message


def trial_to_proto(trial: Trial) -> service_pb2.ServingTrial:
    kinds, states = service_pb2.ServingTrial.Kind, service_pb2.ServingTrial.State
    measured = {
        name: value
        for name, value in asdict(trial.figures).items()
        if value is not None and math.isfinite(value)
    }
    return service_pb2.ServingTrial(
        number=trial.number,
        kind=kinds.Value(f"KIND_{trial.look_kind.value}"),
        state=states.Value(f"STATE_{trial.state}"),
        reason=trial.reason,
        serving=convert.serving_to_proto(trial.serving),
        load_seconds=trial.load_seconds,
        **measured,
    )


def result_to_proto(result: Result, deployment: Deployment | None) -> service_pb2.ServingResult:
    message = service_pb2.ServingResult(
        winner=result.winner,
        is_better=result.is_better,
        is_written=result.is_written,
        reason=result.reason,
        noise=result.noise,
        deployment=convert.deployment_to_proto(deployment) if deployment else None,
    )
    if policy := result.queue_policy:
        message.queue_policy.max_queue_size = policy.max_queue_size or 0
        message.queue_policy.default_timeout_seconds = policy.default_timeout_seconds or 0.0
    return message


def report_to_proto(
    report: Report, deployment: Deployment, plot: bytes
) -> pb.GetServingTuningReportResponse:
    return pb.GetServingTuningReportResponse(
        serving_tuning=tuning_to_proto(report.tuning, deployment),
        conclusion=report.conclusion,
        figures=map(_figure_to_proto, report.figures),
        comparison=_comparison_to_proto(report.comparison) if report.comparison else None,
        plot=plot,
    )


def _wish_to_proto(tuning: ServingTuning) -> service_pb2.TuneServingRequest:
    wish = tuning.wish
    return service_pb2.TuneServingRequest(
        name=_deployment_name(tuning),
        traffic=service_pb2.TrafficShape(
            requests_per_second=wish.requests_per_second,
            source=_SOURCE.Value(wish.source),
        ),
        first_token_seconds=wish.target.first_token_seconds,
        token_seconds=wish.target.token_seconds,
        trials=wish.trials,
        seconds=wish.seconds,
        seed=wish.seed,
        max_instance_count=wish.limits.instance_count,
        max_threads=wish.limits.threads,
        max_cache_gibibytes=wish.limits.cache_gibibytes,
        max_batch_size=wish.limits.max_batch_size,
        dry_run=wish.is_dry_run,
        with_queue=wish.with_queue,
    )


def _figure_to_proto(figure: Figure) -> pb.ServingFigure:
    scenarios = pb.ServingFigure.Scenario
    given = {**asdict(figure), "scenario": scenarios.Value(f"SCENARIO_{figure.scenario}")}
    return pb.ServingFigure(**given)


def _comparison_to_proto(compared: Comparison) -> pb.ServingComparison:
    gain = compared.gain
    return pb.ServingComparison(
        present=compared.present,
        best=compared.best,
        best_trial=compared.best_trial,
        needed=compared.needed,
        noise=compared.noise,
        gain=gain.mean if gain else None,
        gain_low=gain.low if gain else None,
        gain_high=gain.high if gain else None,
        confidence=CONFIDENCE,
    )


def _deployment_name(tuning: ServingTuning) -> str:
    return f"tenants/{tuning.tenant}/deployments/{tuning.deployment}"
