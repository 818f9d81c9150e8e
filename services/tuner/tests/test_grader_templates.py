"""Templates: what they look up, what they refuse."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner.graders.grades import Sample
from millrace_tuner.graders.templates import TemplateError, UnknownVariable, parse

CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALUES = {
    "item": {
        "question": "6 × 7?",
        "messages": [{"content": "first"}, {"content": "last"}],
        "odd name": 1,
        "none": None,
        "on": True,
    },
    "sample": Sample('{"answer": [41, 42]}', [CALL]).values,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain {% text %} { }", "plain {% text %} { }"),
        ("{{ item.question }}", "6 × 7?"),
        ("{{item.question}}!", "6 × 7?!"),
        ("{{ item.messages[0].content }} {{ item.messages[-1]['content'] }}", "first last"),
        ('{{ item["odd name"] }}', "1"),
        ("{{ item.none }}/{{ item.on }}", "null/true"),
        ("{{ item.messages[0] }}", '{"content": "first"}'),
        ("{{ sample.output_text }}", '{"answer": [41, 42]}'),
        ("{{ sample.output_json.answer[1] }}", "42"),
        ("{{ sample.output_tools[0].function.name }}", "f"),
        ("{{ sample.choices[0].message.content }}", '{"answer": [41, 42]}'),
        ("", ""),
    ],
)
def test_it_is_filled(text: str, expected: str) -> None:
    assert parse(text).fill(VALUES) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ item.a", "never closed"),
        ("{{ }}", "must begin with"),
        ("{{ os.environ }}", "must begin with"),
        ("{{ itemised.a }}", "must begin with"),
        ("{{ item.a | upper }}", "only look-ups"),
        ("{{ item.a() }}", "only look-ups"),
        ("{{ item.a + 1 }}", "only look-ups"),
        ("{{ item[a] }}", "only look-ups"),
        ("{{ sample }}", "a sample has only"),
        ("{{ sample.text }}", "a sample has only"),
    ],
)
def test_what_is_no_look_up_is_refused(text: str, says: str) -> None:
    with pytest.raises(TemplateError, match=says):
        parse(text)


@pytest.mark.parametrize(
    "variable",
    [
        "item.answer",
        "item.question.length",
        "item.messages[2]",
        "item.question[0]",
        "item.__class__",
        "sample.output_json.nothing",
        "sample.output_tools[1]",
    ],
)
def test_an_unknown_variable_is_named(variable: str) -> None:
    with pytest.raises(UnknownVariable) as unknown:
        parse(f"{{{{ {variable} }}}}").fill(VALUES)
    assert unknown.value.variable == variable and not unknown.value.is_unparsed_sample


@pytest.mark.parametrize("text", ["no JSON", "NaN", "[1", "", "9" * 5000, "[" * 100_000])
def test_a_sample_that_is_no_json_is_told_from_a_wrong_variable(text: str) -> None:
    with pytest.raises(UnknownVariable, match="is not JSON") as unknown:
        parse("{{ sample.output_json.x }}").fill({"item": {}, "sample": Sample(text).values})
    assert unknown.value.is_unparsed_sample


def test_half_a_surrogate_pair_does_not_get_through() -> None:
    values = {"item": {}, "sample": Sample(r'{"x": "\ud800"}').values}
    assert parse("{{ sample.output_json.x }}").fill(values) == "?"


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(alphabet=st.characters(exclude_characters="{}", codec="utf-8")), json_values)
def test_a_value_stands_where_it_was_named(around: str, value: Any) -> None:
    values = {"item": {"x": value}, "sample": Sample("").values}
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = shown.encode(errors="replace").decode()
    assert parse(f"{around}{{{{ item.x }}}}{around}").fill(values) == around + shown + around


@given(st.text(alphabet="{}% .[]'\"0aitemsplou_x", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        template = parse(text)
    except TemplateError:
        return
    with contextlib.suppress(UnknownVariable):
        template.fill({"item": {"a": 1}, "sample": Sample("x").values})
