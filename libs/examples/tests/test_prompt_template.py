"""Templates: what is wrong with one, what it means, and that values stay text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_examples.prompt_template import (
    Template,
    VariableError,
    normal_template,
    render,
    template_digest,
    template_mistakes,
    template_of,
)

SYSTEM = {"role": "developer", "content": "Answer {{tone}}."}
ASKED = {"role": "user", "content": "Q: {{ question }}"}
PAIR = {"input": "Q: 1+1 {{kept}}", "output": "2"}
DOCUMENT = {
    "messages": [SYSTEM, ASKED],
    "variables": {"tone": {"default": "briefly"}},
    "examples": [PAIR],
}


def template(**change: Any) -> Template:
    document = {**DOCUMENT, **change}
    assert list(template_mistakes(document)) == []
    return template_of(normal_template(document))


def test_examples_stand_before_the_question() -> None:
    assert render(template(), {"question": "2+2"}) == (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Q: 1+1 {{kept}}"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Q: 2+2"},
    )


@given(st.text(), st.text())
def test_values_are_text_and_nothing_else(tone: str, question: str) -> None:
    rendered = render(template(), {"tone": tone, "question": question})
    assert rendered[0]["content"] == f"Answer {tone}."
    assert rendered[-1]["content"] == f"Q: {question}"


def test_a_value_that_looks_like_a_variable_is_not_read_again() -> None:
    rendered = render(template(), {"tone": "{{question}}", "question": "{{tone}} \\1 \\g<0>"})
    assert rendered[0]["content"] == "Answer {{question}}."
    assert rendered[-1]["content"] == "Q: {{tone}} \\1 \\g<0>"


def test_variables_are_found_and_have_to_be_given() -> None:
    assert template().names == ("tone", "question")
    with pytest.raises(VariableError, match="without a default") as missing:
        render(template(), {})
    with pytest.raises(VariableError, match="which has tone, question") as unknown:
        render(template(), {"question": "x", "quest": "y"})
    assert (missing.value.name, unknown.value.name) == ("question", "quest")


def test_what_means_the_same_has_one_digest() -> None:
    parts = [{"type": "text", "text": "Q: "}, {"type": "text", "text": "{{ question }}"}]
    messages = [{**PAIR_MESSAGES[0], "name": None}, PAIR_MESSAGES[1]]
    other = {
        "examples": [{"messages": messages}],
        "messages": [SYSTEM, {"role": "user", "content": parts}],
        "variables": {"question": None, "tone": {"default": "briefly", "description": None}},
        "tools": [],
    }
    assert list(template_mistakes(other)) == []
    digests = {template_digest(normal_template(one)) for one in (DOCUMENT, other)}
    assert len(digests) == 1
    changed = {**DOCUMENT, "variables": {"tone": {"default": "at length"}}}
    assert template_digest(normal_template(changed)) not in digests


PAIR_MESSAGES = [
    {"role": "user", "content": PAIR["input"]},
    {"role": "assistant", "content": PAIR["output"]},
]


def test_normal_is_normal() -> None:
    normal = normal_template(DOCUMENT)
    assert list(template_mistakes(normal)) == []
    assert normal_template(normal) == normal


@pytest.mark.parametrize("text", ['{{"a": 1}}', "{{}}", "{name}", "{{ a\nb }}", "{{{x}}} {{x}}"])
def test_what_is_no_variable_is_text(text: str) -> None:
    made = template(messages=[{"role": "user", "content": text}], variables=None)
    rendered = render(made, dict.fromkeys(made.names, "v"))
    assert rendered[-1]["content"] == text.replace("{{x}}", "v")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "{{two words}}"}]}, "messages[0].content"),
        ({"messages": [{**PAIR_MESSAGES[1], "weight": 1}]}, "messages[0].weight"),
        ({"model": "demo"}, "model"),
        ({"variables": []}, "variables"),
        ({"variables": {"tome": {}}}, "variables.tome"),
        ({"variables": {"tone": "x"}}, "variables.tone"),
        ({"variables": {"tone": {"default": 1}}}, "variables.tone.default"),
        ({"variables": {"tone": {"type": "x"}}}, "variables.tone.type"),
        ({"examples": {}}, "examples"),
        ({"examples": ["x"]}, "examples[0]"),
        ({"examples": [{"input": "x"}]}, "examples[0].output"),
        ({"examples": [{**PAIR, "weight": 0}]}, "examples[0].weight"),
        ({"examples": [{"messages": [ASKED]}]}, "examples[0].messages[0].role"),
        ({"examples": [{"messages": [SYSTEM, *PAIR_MESSAGES]}]}, "examples[0].messages[0].role"),
        ({"tools": [{"type": "search"}]}, "tools[0].type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ],
)
def test_a_mistake_names_its_place(change: dict[str, Any], place: str) -> None:
    assert place in {where for where, _ in template_mistakes({**DOCUMENT, **change})}


def test_so_many_variables_and_no_more() -> None:
    text = " ".join(f"{{{{v{n}}}}}" for n in range(129))
    document = {"messages": [{"role": "user", "content": text}]}
    assert [place for place, _ in template_mistakes(document)] == ["messages"]


@given(st.recursive(st.none() | st.booleans() | st.text() | st.integers(), st.lists))
def test_anything_gets_a_verdict(value: Any) -> None:
    for document in (value, {**DOCUMENT, "examples": value}, {**DOCUMENT, "variables": value}):
        if not list(template_mistakes(document)):
            normal_template(document)
