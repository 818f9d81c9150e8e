"""Alpaca's format, and what LLaMA-Factory makes of it for preferences and for KTO.

Reference: LLaMA-Factory, data/README.md. The user says ``instruction``, a line break and
``input``; the answers in ``history`` are learnt as well.
"""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Conversation, Judged, Messages, Preference
from millrace_examples.kto import judgement_mistakes
from millrace_examples.messages import normal_tools, tools_mistakes
from millrace_examples.preference import sameness
from millrace_examples.prompts import optional_text_mistakes, said_by, text_mistakes
from millrace_examples.values import Mistake, Row, kind_of

_PROMPT_FIELDS = ("instruction", "input", "system", "history", "tools")


def _prompt_mistakes(row: Row) -> Iterator[Mistake]:
    yield from text_mistakes("instruction", row.get("instruction"))
    yield from optional_text_mistakes("input", row.get("input"))
    yield from optional_text_mistakes("system", row.get("system"))
    yield from tools_mistakes(row)
    history = row.get("history")
    if history is None:
        return
    if not isinstance(history, list):
        yield "history", f"must be a list of [question, answer], not {kind_of(history)}"
        return
    for index, turn in enumerate(history):
        if not (isinstance(turn, list) and len(turn) == 2 and all(_is_text(said) for said in turn)):
            yield f"history[{index}]", "must be [question, answer], two strings that are not empty"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _prompt(row: Row) -> Messages:
    said = [said_by("system", row["system"])] if row.get("system") else []
    for question, answer in row.get("history") or ():
        said += [said_by("user", question), said_by("assistant", answer)]
    asked = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return (*said, said_by("user", asked))


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from _prompt_mistakes(row)
    yield from text_mistakes("output", row.get("output"))


def _parse(line: int, row: Row) -> Conversation:
    answer = said_by("assistant", row["output"])
    return Conversation(line, (*_prompt(row), answer), normal_tools(row))


def _preference_mistakes(row: Row) -> Iterator[Mistake]:
    yield from _prompt_mistakes(row)
    for key in ("chosen", "rejected"):
        yield from text_mistakes(key, row.get(key))
    yield from sameness(row)


def _parse_preference(line: int, row: Row) -> Preference:
    chosen, rejected = said_by("assistant", row["chosen"]), said_by("assistant", row["rejected"])
    return Preference(line, _prompt(row), normal_tools(row), (chosen,), (rejected,))


def _kto_mistakes(row: Row) -> Iterator[Mistake]:
    yield from _mistakes(row)
    yield from judgement_mistakes(row, "kto_tag")


def _parse_kto(line: int, row: Row) -> Judged:
    answer = said_by("assistant", row["output"])
    return Judged(line, _prompt(row), (answer,), row["kto_tag"], normal_tools(row))


FORMAT = Format(
    name="alpaca",
    title="instructions as Alpaca has them",
    shape='{"instruction": …, "input": …, "output": …}',
    kind=Conversation,
    fields=frozenset((*_PROMPT_FIELDS, "output")),
    recognises=lambda row: "instruction" in row,
    mistakes=_mistakes,
    parse=_parse,
)

PREFERENCE = Format(
    name="alpaca_preference",
    title="preference pairs as Alpaca has them",
    shape='{"instruction": …, "chosen": …, "rejected": …}',
    kind=Preference,
    fields=frozenset((*_PROMPT_FIELDS, "chosen", "rejected")),
    recognises=lambda row: "instruction" in row and ("chosen" in row or "rejected" in row),
    mistakes=_preference_mistakes,
    parse=_parse_preference,
)

KTO = Format(
    name="alpaca_kto",
    title="judged answers as Alpaca has them",
    shape='{"instruction": …, "output": …, "kto_tag": true}',
    kind=Judged,
    fields=frozenset((*_PROMPT_FIELDS, "output", "kto_tag")),
    recognises=lambda row: "instruction" in row and "kto_tag" in row,
    mistakes=_kto_mistakes,
    parse=_parse_kto,
)
