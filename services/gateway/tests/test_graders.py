"""``openai``'s ``fine_tuning.alpha.graders``, unmodified, through the gateway to real graders."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import openai
import pytest
from gateway_fakes import INTERNAL_TOKEN
from gateway_mesh import Mesh

from millrace_runtime.interceptors import ServiceInterceptor
from millrace_tuner.graders.judge import HttpJudge
from millrace_tuner.graders.runs import GraderRuns
from millrace_tuner.graders.sandbox import Limits
from millrace_tuner.graders_api import GraderServicer

CHECK: Any = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
ALIKE: Any = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
CODE: Any = {
    "type": "python",
    "name": "code",
    "image_tag": "2025-05-08",
    "source": "from rapidfuzz import fuzz, utils\n\n"
    "def grade(sample, item) -> float:\n"
    "    text, answer = sample['output_text'], item['answer']\n"
    "    return fuzz.WRatio(text, answer, processor=utils.default_process) / 100.0\n",
}
SCORE: Any = {
    "type": "score_model",
    "name": "judge",
    "model": "demo",
    "range": [1, 7],
    "input": [{"role": "user", "content": "Score: {{ sample.output_text }}"}],
    "sampling_params": {"temperature": 0, "max_completions_tokens": 16},
}


def _judged(request: httpx.Request) -> httpx.Response:
    """A model that likes short answers."""
    asked = json.loads(request.content)["messages"][0]["content"]
    message = {"role": "assistant", "content": json.dumps({"result": 7 if len(asked) < 20 else 1})}
    return httpx.Response(
        200, json={"choices": [{"message": message}], "usage": {"total_tokens": 12}}
    )


def _start_tuner(judge: HttpJudge | None) -> tuple[grpc.Server, str]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(INTERNAL_TOKEN)])
    GraderServicer(GraderRuns(judge, Limits(60, 60))).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def tuner_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gateway whose tuner grades for real; its judge is played."""
    judge = HttpJudge("http://judge/v1", "sk-judge", transport=httpx.MockTransport(_judged))
    server, address = _start_tuner(judge)
    mesh = Mesh(tmp_path_factory.mktemp("graders"), tuner_address=address)
    mesh.start()
    yield mesh
    mesh.stop()
    server.stop(None).wait()
    judge.close()


@pytest.fixture
def graders(tuner_mesh: Mesh) -> Any:
    return tuner_mesh.openai().fine_tuning.alpha.graders


@pytest.mark.parametrize("grader", [CHECK, ALIKE, CODE, SCORE])
def test_each_kind_is_validated_and_run(graders: Any, grader: Any) -> None:
    assert graders.validate(grader=grader).grader.to_dict() == grader
    result = graders.run(grader=grader, model_sample="Four", item={"answer": "Four"})
    assert result.reward == (7 if grader is SCORE else 1)
    assert (result.metadata.name, result.metadata.type) == (grader["name"], grader["type"])
    assert result.metadata.scores == {grader["name"]: result.reward}
    assert result.sub_rewards == {} and result.metadata.execution_time > 0
    flags = result.metadata.errors.to_dict()
    assert not any(flags.values()), flags


def test_a_formula_over_all_of_them(graders: Any) -> None:
    multi: Any = {
        "type": "multi",
        "name": "all",
        "graders": {"exact": CHECK, "alike": ALIKE, "code": CODE, "judge": SCORE},
        "calculate_output": "(exact + alike + code) / 3 * sqrt(judge ^ 2)",
    }
    assert graders.validate(grader=multi).grader.to_dict() == multi
    result = graders.run(grader=multi, model_sample="Four", item={"answer": "Four"})
    assert result.reward == pytest.approx(7)
    assert result.sub_rewards == {"exact": 1, "alike": 1, "code": 1, "judge": 7}


def test_the_tokens_of_a_judge_are_told(graders: Any) -> None:
    result = graders.run(grader=SCORE, model_sample="Four")
    assert result.api_model_grader_token_usage_per_model == {"demo": 12}
    assert (result.metadata.token_usage, result.metadata.sampled_model_name) == (12, "demo")


def test_what_goes_wrong_within_is_in_the_flags(graders: Any) -> None:
    source = "def grade(sample, item):\n    return open('/etc/passwd').read()\n"
    result = graders.run(grader={**CODE, "source": source}, model_sample="x", item={})
    errors = result.metadata.errors
    assert result.reward == 0 and errors.python_grader_runtime_error
    assert "line 2, in grade" in errors.python_grader_runtime_error_details
    assert "PermissionError" in errors.python_grader_runtime_error_details
    result = graders.run(grader=CHECK, model_sample="x", item={})
    assert result.metadata.errors.invalid_variable_error
    assert result.metadata.errors.other_error_details == "there is no 'item.answer'"


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        ({**CHECK, "operation": "equals"}, "grader.operation"),
        ({**CHECK, "weight": 2}, "grader.weight"),
        ({**CODE, "source": "def grade(:"}, "grader.source"),
        ({**SCORE, "range": [3]}, "grader.range"),
        ({**SCORE, "sampling_params": {"top_k": 3}}, "grader.sampling_params.top_k"),
        ({}, "grader.type"),
    ],
)
def test_a_mistake_is_a_400_with_its_field(graders: Any, grader: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        graders.validate(grader=grader)
    assert refused.value.param == param
    if param != "grader.source":  # that one is an error of the code's, found when it is run
        with pytest.raises(openai.BadRequestError) as refused:
            graders.run(grader=grader, model_sample="x")
        assert refused.value.param == param


def test_unknown_arguments_are_refused(graders: Any) -> None:
    for extra in ({"verbose": True}, {"item": [1]}, {"item": "text"}):
        with pytest.raises(openai.BadRequestError) as refused:
            graders.run(grader=CHECK, model_sample="x", extra_body=extra)
        assert refused.value.param == next(iter(extra))


def test_a_mesh_without_a_judge_says_so(tmp_path: Any) -> None:
    server, address = _start_tuner(None)
    mesh = Mesh(tmp_path, tuner_address=address)
    mesh.start()
    try:
        with pytest.raises(openai.BadRequestError, match="MILLRACE_TUNER_JUDGE_BASE_URL") as no:
            mesh.openai().fine_tuning.alpha.graders.run(grader=SCORE, model_sample="x")
        assert no.value.code == "judge_not_configured"
    finally:
        mesh.stop()
        server.stop(None).wait()
