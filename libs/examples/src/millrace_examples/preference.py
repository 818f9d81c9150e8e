"""TRL's preferences: ``prompt``, ``chosen``, ``rejected``; the prompt may lie in both answers.

Reference: https://huggingface.co/docs/trl/dataset_formats#preference
Of two conversations without ``prompt``, what they have in common at their beginning is the
prompt. Of two strings that would cut a sentence in two, so strings need a ``prompt``.
"""

from collections.abc import Iterator
from typing import Any

from millrace_examples.format import Format
from millrace_examples.kinds import Preference
from millrace_examples.messages import (
    answer_mistakes,
    messages_mistakes,
    normal_messages,
    normal_tools,
    prompt_mistakes,
    role_of,
    tools_mistakes,
)
from millrace_examples.prompts import (
    answer_of,
    answer_value_mistakes,
    prompt_of,
    prompt_value_mistakes,
)
from millrace_examples.values import Mistake, Row

_ANSWERS = ("chosen", "rejected")


def answers_mistakes(row: Row) -> Iterator[Mistake]:
    """Of two answers, each a string or messages."""
    for key in _ANSWERS:
        yield from answer_value_mistakes(key, row.get(key))
    yield from sameness(row)


def sameness(row: Row) -> Iterator[Mistake]:
    if row.get("chosen") is not None and row.get("chosen") == row.get("rejected"):
        yield "rejected", "is the same as chosen: nothing would be learnt"


def _is_whole(row: Row) -> bool:
    """Whether both answers begin with the prompt's messages."""
    answers = [row.get(key) for key in _ANSWERS]
    return all(isinstance(a, list) and a and role_of(a[0]) != "assistant" for a in answers)


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from tools_mistakes(row)
    if _is_whole(row):
        yield from _whole_mistakes(row)
        return
    if row.get("prompt") is None:
        yield "prompt", "is missing, and chosen and rejected do not both begin with it as messages"
    else:
        yield from prompt_value_mistakes("prompt", row["prompt"])
    yield from answers_mistakes(row)


def _whole_mistakes(row: Row) -> Iterator[Mistake]:
    found = [m for key in _ANSWERS for m in messages_mistakes(key, row[key], weights=False)]
    yield from found or sameness(row)
    if found or row["chosen"] == row["rejected"]:
        return
    shared = _shared(row)
    if not shared:
        yield "rejected", "must begin with the same messages as chosen"
        return
    yield from prompt_mistakes("chosen", row["chosen"][:shared])
    for key in _ANSWERS:
        yield from answer_mistakes(f"{key}, from the message where they differ", row[key][shared:])
    yield from _prompt_beside_mistakes(row, shared)


def _prompt_beside_mistakes(row: Row, shared: int) -> Iterator[Mistake]:
    """A prompt that is given as well must be the one that the answers begin with."""
    prompt, beginning = row.get("prompt"), row["chosen"][:shared]
    said = [message["content"] for message in beginning if role_of(message) == "user"]
    if prompt is not None and prompt != beginning and prompt not in said:
        yield "prompt", "is not what chosen and rejected begin with"


def _shared(row: Row) -> int:
    """How many messages both answers begin with; an answer of the assistant ends them."""
    pairs = enumerate(zip(row["chosen"], row["rejected"], strict=False))
    count = next((i for i, (a, b) in pairs if a != b), min(len(row[key]) for key in _ANSWERS))
    while count and role_of(row["chosen"][count - 1]) == "assistant":
        count -= 1
    return count


def _parse(line: int, row: Row) -> Preference:
    tools = normal_tools(row)
    if not _is_whole(row):
        messages, preferred = prompt_of(row["prompt"]), answer_of(row["chosen"])
        return Preference(line, messages, tools, preferred, answer_of(row["rejected"]))
    cut = _shared(row)
    chosen: list[Any] = row["chosen"]
    messages, preferred = normal_messages(chosen[:cut]), normal_messages(chosen[cut:])
    return Preference(line, messages, tools, preferred, normal_messages(row["rejected"][cut:]))


FORMAT = Format(
    name="preference",
    title="preference pairs",
    shape='{"prompt": …, "chosen": …, "rejected": …}',
    kind=Preference,
    fields=frozenset(("prompt", "tools", *_ANSWERS)),
    recognises=lambda row: "chosen" in row or "rejected" in row,
    mistakes=_mistakes,
    parse=_parse,
)
