"""The gRPC face of the graders: convert, call, convert."""

import json
from typing import Any

import grpc

from millrace.tuner.v1 import graders_pb2 as pb
from millrace.tuner.v1 import graders_pb2_grpc
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.settings import secret
from millrace_tuner.graders.grades import Grade, Sample
from millrace_tuner.graders.judge import HttpJudge
from millrace_tuner.graders.runs import GraderRuns
from millrace_tuner.graders.sandbox import Limits
from millrace_tuner.settings import TunerSettings

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GraderService"].full_name


class GraderServicer(graders_pb2_grpc.GraderServiceServicer):
    """``millrace.tuner.v1.GraderService``; requests were validated by the interceptor."""

    def __init__(self, runs: GraderRuns) -> None:
        self._runs = runs

    def register(self, server: grpc.Server) -> None:
        graders_pb2_grpc.add_GraderServiceServicer_to_server(self, server)

    def ValidateGrader(
        self, request: pb.ValidateGraderRequest, context: grpc.ServicerContext
    ) -> pb.ValidateGraderResponse:
        self._runs.validate(_document(request.grader_json, "grader"))
        return pb.ValidateGraderResponse()

    def RunGrader(
        self, request: pb.RunGraderRequest, context: grpc.ServicerContext
    ) -> pb.RunGraderResponse:
        document = _document(request.grader_json, "grader")
        item = _document(request.item_json, "item") if request.item_json else None
        tenant, sample = names.tenant_of(request.parent), Sample(request.model_sample)
        return grade_to_proto(self._runs.run(tenant, document, sample, item))


def servicer(settings: TunerSettings) -> GraderServicer:
    """The servicer, made of what the service was told."""
    limits = Limits(call_seconds=settings.grader_seconds)
    runs = GraderRuns(
        open_judge(settings), limits, settings.grader_concurrency, settings.judge_tenant
    )
    return GraderServicer(runs)


def open_judge(settings: TunerSettings) -> HttpJudge | None:
    """Whom model graders ask; None when nobody was named. Jobs use it too."""
    if not settings.judge_base_url:
        return None
    key = secret(settings.judge_api_key) or settings.judge_api_key_path or ""
    return HttpJudge(settings.judge_base_url, key)


def grade_to_proto(grade: Grade) -> pb.RunGraderResponse:
    return pb.RunGraderResponse(
        name=grade.name,
        type=grade.type,
        reward=grade.reward,
        sub_rewards=grade.sub_rewards,
        errors=pb.GraderErrors(**vars(grade.errors)),
        execution_seconds=grade.execution_seconds,
        sampled_model=grade.sampled_model,
        tokens_by_model=grade.tokens,
        passed=grade.passed,
    )


def _document(text: str, field: str) -> Any:
    """
    Raises:
        InvalidArgument
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{field}: is no JSON", field=field) from None
