"""Calls are found however the text is cut, and what is no call stays text."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_gateway.tool_calls import ToolCall, ToolCallReader

NAMES = {"add", "look_up"}
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>'
LOOK = '<tool_call>{"name": "look_up"}</tool_call>'


def read(*pieces: str, is_forced: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the calls' names and arguments, of an answer that comes in pieces."""
    reader = ToolCallReader(NAMES, is_forced=is_forced)
    found = [item for piece in pieces for item in reader.push(piece)] + reader.flush()
    calls = [(item.name, item.arguments) for item in found if isinstance(item, ToolCall)]
    assert reader.count == len(calls)
    return "".join(item for item in found if isinstance(item, str)), calls


ADDED = ("add", '{"a": 1, "b": "ü"}')
CASES = {
    "text": ("just text\n ", "just text\n ", []),
    "call": (ADD, "", [ADDED]),
    "text before": (f"I will add.\n{ADD}", "I will add.", [ADDED]),
    "two calls": (f"{ADD}\n{LOOK}\n", "", [ADDED, ("look_up", "{}")]),
    "text after": (f"{ADD}\n done", "\n done", [ADDED]),
    "not closed": (ADD.removesuffix("</tool_call>"), "", [ADDED]),
    "cut off": (ADD[:40], ADD[:40], []),
    "no function": (ADD.replace("add", "sub"), ADD.replace("add", "sub"), []),
    "no JSON": ("<tool_call>{name}</tool_call>", "<tool_call>{name}</tool_call>", []),
    "not finite": (LOOK.replace("}<", ', "x": NaN}<'), LOOK.replace("}<", ', "x": NaN}<'), []),
    "arguments in a list": (
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        [],
    ),
    "nearly": ("a <tool_cal and <<tool_call", "a <tool_cal and <<tool_call", []),
    "closed only": ("</tool_call> x", "</tool_call> x", []),
    "deep": ("<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
}


@pytest.mark.parametrize("case", CASES)
def test_whole(case: str) -> None:
    written, text, calls = CASES[case]
    assert read(written) == (text, calls)


@given(case=st.sampled_from(sorted(CASES.keys() - {"deep"})), cuts=st.lists(st.integers(0, 120)))
def test_where_it_is_cut_makes_no_difference(case: str, cuts: list[int]) -> None:
    written, text, calls = CASES[case]
    places = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
    pieces = [written[start:end] for start, end in itertools.pairwise(places)]
    assert read(*pieces) == (text, calls)


@given(st.lists(st.sampled_from(["<", "tool_call", ">", "/", " ", "x", "{", "}", ADD]), max_size=9))
def test_any_text_is_kept_but_for_calls_and_the_space_around(words: list[str]) -> None:
    written = "".join(words)
    text, calls = read(*words)
    if not calls:
        assert text == written
    length, call = (len("".join(some.split())) for some in (written, ADD))
    assert len("".join(text.split())) == length - call * len(calls)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    reader = ToolCallReader(NAMES)
    assert reader.push("Hello ") == ["Hello"]
    assert reader.push("you<") == [" you"]
    assert reader.push("b>") == ["<b>"]
    assert reader.push("\n<tool_") == []


def test_a_call_that_was_begun_for_the_model() -> None:
    document = json.dumps({"name": "add", "arguments": {"a": 1}})
    assert read(document[:9], document[9:], is_forced=True) == ("", [("add", '{"a": 1}')])
    assert read(document[:-5], is_forced=True) == (document[:-5], []), "cut off by max_tokens"
