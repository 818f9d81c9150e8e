"""Texts with what a sequence-to-sequence model makes of them: ``source``, ``target``."""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Pair
from millrace_examples.prompts import text_mistakes
from millrace_examples.values import Mistake, Row


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from text_mistakes("source", row.get("source"))
    yield from text_mistakes("target", row.get("target"))


def _parse(line: int, row: Row) -> Pair:
    return Pair(line, row["source"], row["target"])


FORMAT = Format(
    name="pairs",
    title="pairs of texts",
    shape='{"source": …, "target": …}',
    kind=Pair,
    fields=frozenset(("source", "target")),
    recognises=lambda row: "source" in row and "target" in row,
    mistakes=_mistakes,
    parse=_parse,
)
