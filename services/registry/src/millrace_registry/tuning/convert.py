"""Between a search and ``service.proto``: TuneServing."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from millrace.registry.v1 import service_pb2 as pb
from millrace_registry import convert
from millrace_registry.domain import Serving
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.service import Wish
from millrace_registry.tuning.space import Limits
from millrace_runtime.errors import InvalidArgument

_SERVING: TypeAdapter[Serving] = TypeAdapter(Serving)


def wish_from_proto(request: pb.TuneServingRequest) -> Wish:
    """
    Raises:
        InvalidArgument: prompts and answers are not as many.
    """
    prompts, answers = request.traffic.prompt_tokens, request.traffic.answer_tokens
    if len(prompts) != len(answers):
        raise InvalidArgument(
            f"{len(prompts)} prompts and {len(answers)} answers: each prompt has its answer",
            field="traffic.answer_tokens",
        )
    return Wish(
        target=Target(request.first_token_seconds, request.token_seconds),
        traffic=tuple(zip(prompts, answers, strict=True)),
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


def news_to_proto(news: Mapping[str, Any]) -> pb.TuneServingResponse:
    """What ``ServingTuner.tune`` yields."""
    if news["kind"] == "phase":
        return pb.TuneServingResponse(phase=news["phase"])
    if news["kind"] == "trial":
        return pb.TuneServingResponse(trial=_trial(news))
    result = pb.ServingResult(
        winner=news["winner"],
        is_better=news["is_better"],
        is_written=news["is_written"],
        reason=news["reason"],
        noise=news["noise"],
        deployment=convert.deployment_to_proto(news["deployment"]),
    )
    if policy := news["queue_policy"]:
        result.queue_policy.max_queue_size = policy.max_queue_size
        result.queue_policy.default_timeout_seconds = policy.default_timeout_seconds
    return pb.TuneServingResponse(result=result)


def _trial(news: Mapping[str, Any]) -> pb.ServingTrial:
    trial = pb.ServingTrial
    measured = {
        name: value
        for name, value in news["figures"].items()
        if value is not None and math.isfinite(value)
    }
    return pb.ServingTrial(
        number=news["number"],
        kind=trial.Kind.Value(f"KIND_{news['look_kind']}"),
        state=trial.State.Value(f"STATE_{news['state']}"),
        reason=news["reason"],
        serving=convert.serving_to_proto(_SERVING.validate_python(news["serving"])),
        load_seconds=news["load_seconds"],
        **measured,
    )
