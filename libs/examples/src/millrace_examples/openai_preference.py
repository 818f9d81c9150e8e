"""OpenAI's preference fine-tuning: ``input``, ``preferred_output``, ``non_preferred_output``.

Reference: https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Preference
from millrace_examples.messages import (
    answer_mistakes,
    normal_messages,
    normal_tools,
    prompt_mistakes,
    tools_mistakes,
)
from millrace_examples.values import Mistake, Row, kind_of, place_of

_ANSWERS = ("preferred_output", "non_preferred_output")
_INPUT_FIELDS = frozenset(("messages", "tools", "parallel_tool_calls", "functions"))


def _mistakes(row: Row) -> Iterator[Mistake]:
    given = row.get("input")
    if isinstance(given, dict):
        yield from _input_mistakes(given)
    else:
        yield "input", f"must be an object, not {kind_of(given)}"
    for key in _ANSWERS:
        yield from answer_mistakes(key, row.get(key))
    if isinstance(row.get(_ANSWERS[0]), list) and row[_ANSWERS[0]] == row.get(_ANSWERS[1]):
        yield _ANSWERS[1], "is the same as preferred_output: nothing would be learnt"


def _input_mistakes(given: Row) -> Iterator[Mistake]:
    for key in sorted(set(given) - _INPUT_FIELDS):
        yield place_of("input", key), "is not a field of input"
    yield from prompt_mistakes("input.messages", given.get("messages"))
    yield from tools_mistakes(given, "input")


def _parse(line: int, row: Row) -> Preference:
    preferred, rejected = (normal_messages(row[key]) for key in _ANSWERS)
    given = row["input"]
    messages = normal_messages(given["messages"])
    return Preference(line, messages, normal_tools(given), preferred, rejected)


FORMAT = Format(
    name="openai_preference",
    title="preference pairs as OpenAI has them",
    shape='{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}',
    kind=Preference,
    fields=frozenset(("input", *_ANSWERS)),
    recognises=lambda row: any(key in row for key in _ANSWERS),
    mistakes=_mistakes,
    parse=_parse,
    is_strict=True,
)
