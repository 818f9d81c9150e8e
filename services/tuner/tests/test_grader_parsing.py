"""Graders as clients write them: what is understood, and how mistakes are said."""

from typing import Any

import pytest

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.graders import similarity
from millrace_tuner.graders.parsing import parse
from millrace_tuner.graders.specification import (
    LabelModel,
    Multi,
    PythonCode,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    asks_judge,
)

CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
SIMILARITY: dict[str, Any] = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "bleu",
}
PYTHON: dict[str, Any] = {
    "type": "python",
    "name": "code",
    "source": "def grade(sample, item):\n    return 1.0\n",
    "image_tag": "2025-05-08",
}
SCORE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": "demo",
    "input": [
        {"role": "system", "content": "Score it."},
        {
            "type": "message",
            "role": "user",
            "content": [
                "A",
                {"type": "input_text", "text": "{{ sample.output_text }}"},
                {"type": "input_image", "image_url": "{{ item.image }}", "detail": "low"},
                {"type": "input_audio", "input_audio": {"data": "{{ item.a }}", "format": "wav"}},
            ],
        },
    ],
    "range": [1, 7],
    "sampling_params": {
        "max_completions_tokens": 32,
        "temperature": 0,
        "top_p": 1,
        "seed": 3,
        "reasoning_effort": "low",
    },
}
LABEL: dict[str, Any] = {
    "type": "label_model",
    "name": "tone",
    "model": "demo",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
MULTI: dict[str, Any] = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": CHECK, "alike": SIMILARITY},
    "calculate_output": "0.5 * exact + 0.5 * alike",
}


def test_every_type_is_understood() -> None:
    assert isinstance(parse(CHECK), StringCheck)
    assert isinstance(parse(SIMILARITY), TextSimilarity)
    assert isinstance(parse(PYTHON), PythonCode)
    score = parse(SCORE)
    assert isinstance(score, ScoreModel) and (score.lowest, score.highest) == (1, 7)
    assert score.sampling == {
        "max_completion_tokens": 32,
        "temperature": 0,
        "top_p": 1,
        "seed": 3,
        "reasoning_effort": "low",
    }
    assert [part.kind for part in score.messages[1].parts] == ["text", "text", "image", "audio"]
    assert isinstance(parse(LABEL), LabelModel)
    multi = parse(MULTI)
    assert isinstance(multi, Multi) and list(multi.graders) == ["exact", "alike"]
    assert not asks_judge(multi)
    assert asks_judge(parse({**MULTI, "graders": {"exact": CHECK, "alike": LABEL}}))


@pytest.mark.parametrize("metric", similarity.METRICS)
def test_every_metric_is_understood(metric: str) -> None:
    parse({**SIMILARITY, "evaluation_metric": metric})


def test_one_grader_alone_goes_by_its_own_name() -> None:
    """As the SDK's types have it: ``graders`` is one grader there."""
    multi = parse({**MULTI, "graders": CHECK, "calculate_output": "exact * 2"})
    assert isinstance(multi, Multi) and list(multi.graders) == ["exact"]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (None, "grader"),
        ([CHECK], "grader"),
        ({}, "grader.type"),
        ({**CHECK, "type": "other"}, "grader.type"),
        ({**CHECK, "type": ["eq"]}, "grader.type"),
        ({**CHECK, "name": ""}, "grader.name"),
        ({**CHECK, "name": 1}, "grader.name"),
        ({**CHECK, "operation": "equals"}, "grader.operation"),
        ({**CHECK, "input": None}, "grader.input"),
        ({**CHECK, "input": 1}, "grader.input"),
        ({**CHECK, "reference": "{{ answer }}"}, "grader.reference"),
        ({**CHECK, "weight": 1}, "grader.weight"),
        ({**SIMILARITY, "evaluation_metric": "rouge_6"}, "grader.evaluation_metric"),
        ({**SIMILARITY, "pass_threshold": "high"}, "grader.pass_threshold"),
        ({**PYTHON, "source": ""}, "grader.source"),
        ({**PYTHON, "source": "#" * 300_000}, "grader.source"),
        ({**PYTHON, "image_tag": "1999"}, "grader.image_tag"),
        ({**SCORE, "range": [1]}, "grader.range"),
        ({**SCORE, "range": [7, 1]}, "grader.range"),
        ({**SCORE, "range": [True, 2]}, "grader.range"),
        ({**SCORE, "range": "01"}, "grader.range"),
        ({**SCORE, "model": None}, "grader.model"),
        ({**SCORE, "input": []}, "grader.input"),
        ({**SCORE, "input": "text"}, "grader.input"),
        ({**SCORE, "input": [{"role": "tool", "content": "x"}]}, "grader.input[0].role"),
        ({**SCORE, "input": [{"role": "user"}]}, "grader.input[0].content"),
        (
            {**SCORE, "input": [{"role": "user", "content": [{"type": "file"}]}]},
            "grader.input[0].content[0].type",
        ),
        (
            {**SCORE, "input": [{"role": "user", "content": ["{{ x }}"]}]},
            "grader.input[0].content[0]",
        ),
        ({**SCORE, "sampling_params": {"top_k": 1}}, "grader.sampling_params.top_k"),
        ({**SCORE, "sampling_params": {"seed": 1.5}}, "grader.sampling_params.seed"),
        ({**SCORE, "sampling_params": {"temperature": 3}}, "grader.sampling_params.temperature"),
        ({**LABEL, "labels": []}, "grader.labels"),
        ({**LABEL, "labels": ["a", "a"]}, "grader.labels[1]"),
        ({**LABEL, "passing_labels": ["fine"]}, "grader.passing_labels[0]"),
        ({**MULTI, "graders": {}}, "grader.graders"),
        ({**MULTI, "graders": {"max": CHECK}}, "grader.graders.max"),
        ({**MULTI, "graders": {"a b": CHECK}}, "grader.graders.a b"),
        ({**MULTI, "graders": {"a": MULTI}}, "grader.graders.a.type"),
        ({**MULTI, "graders": {"exact": {**CHECK, "x": 1}}}, "grader.graders.exact.x"),
        ({**MULTI, "calculate_output": "exact +"}, "grader.calculate_output"),
        ({**MULTI, "calculate_output": "exact + other"}, "grader.calculate_output"),
        ({**MULTI, "calculate_output": "__import__('os')"}, "grader.calculate_output"),
    ],
)
def test_a_mistake_is_said_with_its_field(document: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse(document)
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")
