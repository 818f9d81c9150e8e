"""A grader at work: rewards, and every way in which grading goes wrong without raising."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from millrace_tuner.graders import model_grading
from millrace_tuner.graders.grader import Grader
from millrace_tuner.graders.grades import Errors, Grade, Sample
from millrace_tuner.graders.judge import HttpJudge, JudgeFailed, Verdict
from millrace_tuner.graders.parsing import parse
from millrace_tuner.graders.sandbox import Limits

CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
ALIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
CODE = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return 1 / len(sample['output_json'])\n",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "demo",
    "range": [0, 10],
    "input": [{"role": "user", "content": "Score {{ sample.output_text }}"}],
    "sampling_params": {"temperature": 0},
}
LABEL = {
    "type": "label_model",
    "name": "tone",
    "model": "demo",
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
}


class PlayedJudge:
    """Answers by what it is asked."""

    def __init__(self, answer: Callable[[str], Verdict]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self.asked: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []

    def answer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        schema: Mapping[str, Any],
    ) -> Verdict:
        with self._lock:
            self.asked.append((messages[0]["content"], sampling, schema))
        return self._answer(messages[0]["content"])


def graded(document: Any, text: str, item: Any = None, judge: Any = None) -> Grade:
    with Grader(parse(document), judge=judge, limits=Limits(60, 60)) as grader:
        return grader.grade([Sample(text)], item or {"answer": "Four"})[0]


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [
        ("eq", "Four", 1),
        ("eq", "four", 0),
        ("ne", "four", 1),
        ("ne", "Four", 0),
        ("like", "It is Four.", 1),
        ("like", "It is four.", 0),
        ("ilike", "It is FOUR.", 1),
        ("ilike", "It is five.", 0),
    ],
)
def test_string_check(operation: str, text: str, reward: float) -> None:
    grade = graded({**CHECK, "operation": operation}, text)
    assert grade.is_valid and grade.reward == reward
    assert (grade.name, grade.type, grade.sub_rewards) == ("exact", "string_check", {})


def test_similarity_and_its_threshold() -> None:
    assert graded(ALIKE, "Four").passed is None
    grade = graded({**ALIKE, "pass_threshold": 0.9}, "For")
    assert grade.reward == pytest.approx(6 / 7) and grade.passed is False
    assert graded({**ALIKE, "pass_threshold": 0.9}, "Four").passed is True


def test_a_formula_combines_rewards() -> None:
    multi = {
        "type": "multi",
        "name": "all",
        "graders": {"exact": CHECK, "alike": ALIKE, "code": CODE},
        "calculate_output": "0.5 * exact + max(alike, code) / 4",
    }
    grade = graded(multi, '["Four"]')
    assert grade.is_valid and grade.type == "multi"
    assert grade.sub_rewards == {"exact": 0, "alike": pytest.approx(8 / 12), "code": 1}
    assert grade.reward == pytest.approx(0.25)


def test_python_is_kept_for_all_samples_and_sees_sample_and_item() -> None:
    source = """
count = 0
def grade(sample, item):
    global count
    count += 1
    assert sample["choices"][0]["message"]["content"] == sample["output_text"]
    assert sample["output_tools"] == [{"id": "call-1"}]
    return count * item["weight"]
"""
    with Grader(parse({**CODE, "source": source})) as grader:
        samples = [Sample(text, [{"id": "call-1"}]) for text in "abc"]
        grades = grader.grade(samples, {"weight": 10})
    assert [grade.reward for grade in grades] == [10, 20, 30]


def test_a_score_is_asked_for_within_its_range() -> None:
    judge = PlayedJudge(lambda asked: Verdict('{"result": 7.5}', tokens=21))
    grade = graded(SCORE, "poem", judge=judge)
    assert grade.is_valid and grade.reward == 7.5
    assert (grade.sampled_model, grade.tokens) == ("demo", {"demo": 21})
    [(asked, sampling, schema)] = judge.asked
    assert asked == "Score poem" and sampling == {"temperature": 0}
    assert schema["properties"]["result"] == {"type": "number", "minimum": 0, "maximum": 10}


@pytest.mark.parametrize(
    ("answer", "reward"), [('{"result": "kind"}', 1), ('{"result": "rude"}', 0), (" kind\n", 1)]
)
def test_a_label_passes_or_not(answer: str, reward: float) -> None:
    judge = PlayedJudge(lambda asked: Verdict(answer))
    grade = graded(LABEL, "hello", judge=judge)
    assert grade.is_valid and grade.reward == reward
    assert judge.asked[0][2]["properties"]["result"]["enum"] == ["kind", "rude"]


@pytest.mark.parametrize(
    "answer",
    ["", "great", '{"result": "high"}', '{"result": 11}', '{"result": true}', '{"result": NaN}',
     '{"result": null}', '{"score": 5}', "[5]", '{"result": 1' + "0" * 400 + "}"],
)  # fmt: skip
def test_a_score_that_cannot_be_read_is_an_error(answer: str) -> None:
    grade = graded(SCORE, "x", judge=PlayedJudge(lambda asked: Verdict(answer, tokens=5)))
    assert grade.errors.model_grader_parse_error and grade.reward == 0
    assert grade.tokens == {"demo": 5}


@pytest.mark.parametrize("answer", ["", "neutral", '{"result": ["kind"]}', '{"result": {}}'])
def test_a_label_that_is_none_is_an_error(answer: str) -> None:
    grade = graded(LABEL, "x", judge=PlayedJudge(lambda asked: Verdict(answer)))
    assert grade.errors.model_grader_parse_error and grade.reward == 0


def test_many_samples_are_asked_about_at_once_and_stay_in_order() -> None:
    meeting = threading.Barrier(4, timeout=30)

    def answer(asked: str) -> Verdict:
        meeting.wait()  # nobody passes unless four are there
        return Verdict(asked.rpartition(" ")[2])

    with Grader(parse(SCORE), judge=PlayedJudge(answer), judge_concurrency=4) as grader:
        grades = grader.grade([Sample(str(number)) for number in range(8)], {})
    assert [grade.reward for grade in grades] == list(range(8))


def _refusing(_asked: str) -> Verdict:
    return Verdict("", refusal="I will not")


def _failing(_asked: str) -> Verdict:
    raise JudgeFailed("the judge answered 500")


def _breaking(_asked: str) -> Verdict:
    raise LookupError("nobody foresaw this")


@pytest.mark.parametrize(
    ("document", "answer", "flag", "details"),
    [
        (
            {**CHECK, "reference": "{{ item.wrong }}"},
            None,
            "invalid_variable_error",
            "there is no 'item.wrong'",
        ),
        (
            {**CHECK, "input": "{{ sample.output_json.a }}"},
            None,
            "sample_parse_error",
            "there is no 'sample.output_json.a': the sample's text is not JSON",
        ),
        (
            CODE,
            None,
            "python_grader_runtime_error",
            "line 2, in grade: return 1 / len(sample['output_json'])\n"
            "TypeError: object of type 'NoneType' has no len()",
        ),
        (SCORE, _refusing, "model_grader_refusal_error", "I will not"),
        (SCORE, _failing, "model_grader_server_error", "the judge answered 500"),
        (SCORE, _breaking, "other_error", "LookupError; see the log"),
        (
            {
                "type": "multi",
                "name": "m",
                "graders": {"exact": CHECK},
                "calculate_output": "1 / exact",
            },
            None,
            "other_error",
            "'1 / exact' cannot be computed: float division by zero",
        ),
    ],
)
def test_what_goes_wrong_is_a_flag_and_a_reward_of_nothing(
    document: Any, answer: Any, flag: str, details: str
) -> None:
    grade = graded(document, "no JSON", judge=PlayedJudge(answer) if answer else None)
    assert grade.reward == 0 and not grade.is_valid
    flags = [name for name, value in vars(grade.errors).items() if value is True]
    assert flags == [flag]
    assert details in [value for value in vars(grade.errors).values() if isinstance(value, str)]


def test_errors_of_parts_are_those_of_the_whole() -> None:
    multi = {
        "type": "multi",
        "name": "m",
        "graders": {"a": {**CHECK, "input": "{{ item.x }}"}, "b": CODE, "c": CHECK},
        "calculate_output": "a + b + c",
    }
    grade = graded(multi, "Four")
    assert grade.reward == 1 and grade.sub_rewards == {"a": 0, "b": 0, "c": 1}
    assert grade.errors.invalid_variable_error and grade.errors.python_grader_runtime_error
    assert not grade.errors.formula_parse_error


def test_a_model_grader_needs_a_judge() -> None:
    with pytest.raises(ValueError, match="judge"):
        Grader(parse(SCORE))


def http_judge(
    *answers: httpx.Response | Exception,
    seen: list[Any] | None = None,
    key: str | Path = "sk-judge",
) -> HttpJudge:
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/chat/completions"
        assert request.headers.get("authorization") == ("Bearer sk-judge" if key else None)
        if seen is not None:
            seen.append(json.loads(request.content))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    transport = httpx.MockTransport(handle)
    return HttpJudge("http://judge/v1", key, transport=transport, sleep=lambda _: None)


def completion(content: str | None, refusal: str | None = None) -> httpx.Response:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    document = {"choices": [{"message": message}], "usage": {"total_tokens": 9}}
    return httpx.Response(200, json=document)


def failure(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})


def ask(judge: HttpJudge) -> Verdict:
    schema = model_grading.schema(parse(LABEL))  # type: ignore[arg-type]
    try:
        return judge.answer("demo", [{"role": "user", "content": "x"}], {"seed": 1}, schema)
    finally:
        judge.close()


def test_the_judge_is_held_to_the_schema() -> None:
    seen: list[Any] = []
    verdict = ask(http_judge(completion('{"result": "kind"}'), seen=seen))
    assert verdict == Verdict('{"result": "kind"}', tokens=9)
    assert seen[0]["seed"] == 1 and seen[0]["model"] == "demo"
    wanted = seen[0]["response_format"]["json_schema"]
    assert wanted["strict"] and wanted["schema"]["required"] == ["result"]


def test_a_judge_that_takes_no_schema_is_asked_without() -> None:
    seen: list[Any] = []
    refused = failure(400, "response_format is not supported")
    assert ask(http_judge(refused, completion("kind"), seen=seen)).text == "kind"
    assert "response_format" in seen[0] and "response_format" not in seen[1]


@pytest.mark.parametrize(
    "hindrance", [failure(503, "loading"), failure(429, "slowly"), httpx.ConnectError("no")]
)
def test_what_may_pass_is_tried_again(hindrance: Any) -> None:
    assert ask(http_judge(hindrance, hindrance, completion("kind"))).text == "kind"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([failure(401, "wrong key")], "answered 401: wrong key"),
        ([failure(404, "no such model")], "answered 404: no such model"),
        ([failure(503, "loading")] * 3, "answered 503: loading"),
        ([httpx.ReadTimeout("too slow")] * 3, "cannot be reached: too slow"),
        ([httpx.Response(200, text="<html>")], "is no chat completion: <html>"),
        ([httpx.Response(200, json={"choices": []})], "is no chat completion"),
        ([httpx.Response(200, json=[1])], "is no chat completion"),
    ],
)
def test_a_judge_that_fails_is_said(answers: list[Any], says: str) -> None:
    with pytest.raises(JudgeFailed, match=says):
        ask(http_judge(*answers))


def test_the_key_may_lie_in_a_file_that_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(JudgeFailed, match="cannot be read"):
        ask(http_judge(completion("kind"), key=path))
    assert ask(http_judge(completion("kind"), key="")).text == "kind"
    path.write_text("sk-judge\n")
    assert ask(http_judge(completion("kind"), key=path)).text == "kind"


def test_a_refusal_is_told_apart() -> None:
    assert ask(http_judge(completion(None, "no"))) == Verdict("", "no", 9)


def test_nothing_went_wrong_means_no_flag() -> None:
    assert not any(vars(Errors()).values())
