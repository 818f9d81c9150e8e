"""TRL's unpaired preferences, for KTO: ``prompt``, ``completion``, ``label``.

Reference: https://huggingface.co/docs/trl/dataset_formats#unpaired-preference
"""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Judged
from millrace_examples.messages import normal_tools, tools_mistakes
from millrace_examples.prompts import (
    answer_of,
    answer_value_mistakes,
    prompt_of,
    prompt_value_mistakes,
)
from millrace_examples.values import Mistake, Row, quoted


def judgement_mistakes(row: Row, key: str) -> Iterator[Mistake]:
    if not isinstance(row.get(key), bool):
        yield key, f"must be true (a good answer) or false, not {quoted(row.get(key))}"


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from prompt_value_mistakes("prompt", row.get("prompt"))
    yield from answer_value_mistakes("completion", row.get("completion"))
    yield from judgement_mistakes(row, "label")
    yield from tools_mistakes(row)


def _parse(line: int, row: Row) -> Judged:
    prompt, completion = prompt_of(row["prompt"]), answer_of(row["completion"])
    return Judged(line, prompt, completion, row["label"], normal_tools(row))


FORMAT = Format(
    name="kto",
    title="answers that were found good or bad",
    shape='{"prompt": …, "completion": …, "label": true}',
    kind=Judged,
    fields=frozenset(("prompt", "completion", "label", "tools")),
    recognises=lambda row: "completion" in row and "label" in row,
    mistakes=_mistakes,
    parse=_parse,
)
