import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_data.chat_format import (
    MAXIMUM_PROBLEMS,
    MINIMUM_EXAMPLES,
    line_problems,
    validate_chat_jsonl,
)


def line(*messages: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": list(messages), **more}).encode()


USER = {"role": "user", "content": "Question?"}
ANSWER = {"role": "assistant", "content": "Answer."}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "good",
    [
        line(USER, ANSWER),
        line({"role": "system", "content": ""}, USER, ANSWER),
        line({"role": "developer", "content": "Be kind."}, USER, ANSWER, tools=[]),
        line(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
        line(
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            ANSWER,
        ),
    ],
)
def test_accepts(good: bytes) -> None:
    assert line_problems(1, good) == []


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b'{"messages": [', "line 7: is not JSON"),
        (b"\xff{}", "line 7: is not UTF-8 (byte 0)"),
        (b"[1]", "line 7: must be a JSON object, not a list"),
        (b"{}", "line 7: messages: must be a non-empty list"),
        (line(), "line 7: messages: must be a non-empty list"),
        (line("hi", ANSWER), "line 7: messages[0]: must be an object, not a string"),
        (line({**USER, "role": "bot"}, ANSWER), "line 7: messages[0].role: must be one of"),
        (line({"content": "x"}, ANSWER), "messages[0].role: must be one of"),
        (line({"role": "user"}, ANSWER), "messages[0].content: must be a string, not null"),
        (line({**USER, "content": 3}, ANSWER), "messages[0].content: must be a string, not a num"),
        (line({**USER, "content": ""}, ANSWER), "messages[0].content: must not be empty"),
        (line({**USER, "content": "\ud800"}, ANSWER), "messages[0].content: has half a surrogate"),
        (line({**USER, "contents": "x"}, ANSWER), "messages[0].contents: is not a field"),
        (line(USER), "messages[0].role: the last message must be the assistant's"),
        (line({**USER, "weight": 1}, ANSWER), "messages[0].weight: is for assistant messages only"),
        (line(USER, {**ANSWER, "weight": 0.5}), "messages[1].weight: must be 0 or 1, not 0.5"),
        (line(USER, {**ANSWER, "weight": True}), "messages[1].weight: must be 0 or 1, not true"),
        (line(USER, {**ANSWER, "weight": 0}), "messages: every assistant message has weight 0"),
        (line({"role": "tool", "content": "4"}, ANSWER), "messages[0].tool_call_id: must name"),
        (line({**USER, "tool_calls": [CALL]}, ANSWER), "messages[0].tool_calls: is for assistant"),
        (line(USER, {**ANSWER, "tool_calls": []}), "messages[1].tool_calls: must be a non-empty"),
        (line(USER, {**ANSWER, "tool_calls": [{}]}), "messages[1].tool_calls[0].function: must be"),
        (
            line(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}),
            "messages[1].tool_calls[0].function.arguments: must be a string",
        ),
    ],
)
def test_names_line_and_field(bad: bytes, expected: str) -> None:
    problems = [str(problem) for problem in line_problems(7, bad)]
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("line 7: ") for problem in problems)


def test_counts_examples_and_skips_blank_lines() -> None:
    report = validate_chat_jsonl([line(USER, ANSWER) + b"\n", b"\n"] * MINIMUM_EXAMPLES)
    assert report.valid
    assert report.examples == MINIMUM_EXAMPLES


def test_too_few_examples_is_a_problem_of_the_file() -> None:
    report = validate_chat_jsonl([line(USER, ANSWER)] * (MINIMUM_EXAMPLES - 1))
    assert [str(p) for p in report.problems] == [
        "file: has 9 examples; fine-tuning needs at least 10"
    ]


def test_stops_after_so_many_problems() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield b"{}"

    report = validate_chat_jsonl(endless())
    assert len(report.problems) == MAXIMUM_PROBLEMS
    assert read == MAXIMUM_PROBLEMS


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "weight", "tool_calls", "function"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(st.one_of(JSON, st.fixed_dictionaries({"messages": st.lists(JSON, max_size=3)})))
def test_any_json_gets_a_verdict(value: Any) -> None:
    for problem in line_problems(1, json.dumps(value).encode()):
        assert str(problem).startswith("line 1: ")
