"""``GraderService`` over gRPC: what comes back, and how what is wrong is said."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from millrace.tuner.v1 import graders_pb2 as pb
from millrace.tuner.v1 import graders_pb2_grpc
from millrace_runtime.channel import call
from millrace_runtime.errors import (
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    Unavailable,
)
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_tuner.graders.judge import Verdict
from millrace_tuner.graders.runs import GraderRuns
from millrace_tuner.graders.sandbox import Limits
from millrace_tuner.graders_api import GraderServicer, servicer
from millrace_tuner.settings import TunerSettings

PARENT = "tenants/acme"
CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "demo",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
}
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item):\n    return 1/0\n"}


class WaitingJudge:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def answer(self, *_: Any) -> Verdict:
        self.is_asked.set()
        assert self.may_answer.wait(30)
        return Verdict("1", tokens=3)


class Server:
    def __init__(self, servicer: GraderServicer) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
        servicer.register(self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = graders_pb2_grpc.GraderServiceStub(self._channel)

    def validate(self, grader: Any) -> None:
        request = pb.ValidateGraderRequest(parent=PARENT, grader_json=json.dumps(grader))
        call(self.stub.ValidateGrader, request, timeout=60)

    def run(self, grader: Any, sample: str = "4", item: Any = None) -> pb.RunGraderResponse:
        request = pb.RunGraderRequest(
            parent=PARENT,
            grader_json=json.dumps(grader),
            item_json="" if item is None else json.dumps(item),
            model_sample=sample,
        )
        return call(self.stub.RunGrader, request, timeout=60)

    def stop(self) -> None:
        self._channel.close()
        self._server.stop(None).wait()


@pytest.fixture
def judge() -> WaitingJudge:
    return WaitingJudge()


@pytest.fixture
def server(judge: WaitingJudge) -> Iterator[Server]:
    runs = GraderRuns(judge, Limits(60, 60), concurrency=1, patience_seconds=0.01)
    made = Server(GraderServicer(runs))
    yield made
    made.stop()


def refused(kind: type[MillraceError], act: Any) -> MillraceError:
    with pytest.raises(kind) as error:
        act()
    return error.value


def test_a_grade_comes_back_with_all_it_has(server: Server, judge: WaitingJudge) -> None:
    judge.may_answer.set()
    multi = {
        "type": "multi",
        "name": "all",
        "graders": {"exact": CHECK, "judge": {**SCORE, "pass_threshold": 1}, "code": CODE},
        "calculate_output": "exact + judge + code",
    }
    grade = server.run(multi, item={"answer": "4"})
    assert (grade.name, grade.type, grade.reward) == ("all", "multi", 2)
    assert dict(grade.sub_rewards) == {"exact": 1, "judge": 1, "code": 0}
    assert dict(grade.tokens_by_model) == {"demo": 3}
    assert grade.errors.python_grader_runtime_error and not grade.errors.other_error
    assert "ZeroDivisionError" in grade.errors.python_grader_runtime_error_details
    assert not grade.errors.HasField("other_error_details")
    assert grade.execution_seconds > 0 and not grade.HasField("passed")
    single = server.run({**SCORE, "pass_threshold": 1})
    assert single.passed and single.sampled_model == "demo"


def test_a_grader_is_validated_without_running_it(server: Server, judge: WaitingJudge) -> None:
    for grader in (CHECK, SCORE, CODE):
        server.validate(grader)
    assert not judge.is_asked.is_set()
    multi = {"type": "multi", "name": "m", "graders": {"c": CODE}, "calculate_output": "c"}
    wrong = {**multi, "graders": {"ok": CODE, "c": {**CODE, "source": "def grade(:"}}}
    error = refused(InvalidArgument, lambda: server.validate(wrong))
    assert error.field == "grader.graders.c.source"
    assert error.reason == "INVALID_GRADER_SOURCE"


@pytest.mark.parametrize(
    ("grader", "item", "field"),
    [([], None, "grader"), ({}, None, "grader.type"), (CHECK, [1], "item")],
)
def test_a_mistake_is_said(server: Server, grader: Any, item: Any, field: str) -> None:
    error = refused(InvalidArgument, lambda: server.run(grader, item=item))
    assert error.field == field


def test_what_is_no_json_is_said(server: Server) -> None:
    request = pb.ValidateGraderRequest(parent=PARENT, grader_json="{'a'")
    error = refused(InvalidArgument, lambda: call(server.stub.ValidateGrader, request))
    assert error.field == "grader"


def test_too_many_at_once_are_told_to_come_again(server: Server, judge: WaitingJudge) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(server.run, SCORE)
        assert judge.is_asked.wait(30)
        assert refused(Unavailable, lambda: server.run(CHECK)).reason == "GRADERS_BUSY"
        judge.may_answer.set()
        assert first.result(30).reward == 1
    assert server.run(CHECK, item={"answer": "4"}).reward == 1


def test_the_judge_of_one_tenant_does_not_answer_another(judge: WaitingJudge) -> None:
    judge.may_answer.set()
    made = Server(GraderServicer(GraderRuns(judge, judge_tenant="other")))
    try:
        error = refused(FailedPrecondition, lambda: made.run(SCORE))
        assert error.reason == "JUDGE_OF_ANOTHER_TENANT" and not judge.is_asked.is_set()
    finally:
        made.stop()
    made = Server(GraderServicer(GraderRuns(judge, judge_tenant="acme")))
    try:
        assert made.run(SCORE).reward == 1
    finally:
        made.stop()


def test_without_a_judge_the_setting_is_named() -> None:
    made = Server(servicer(TunerSettings()))
    try:
        error = refused(FailedPrecondition, lambda: made.run(SCORE))
        assert error.reason == "JUDGE_NOT_CONFIGURED"
        assert "MILLRACE_TUNER_JUDGE_BASE_URL" in str(error)
        made.validate(SCORE)
        assert made.run(CHECK, item={"answer": "4"}).reward == 1
    finally:
        made.stop()
