"""Plain text to go on pre-training with: ``{"text": …}``, and the pieces of a text file."""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Text
from millrace_examples.prompts import text_mistakes
from millrace_examples.values import Mistake, Row


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from text_mistakes("text", row.get("text"))


def _parse(line: int, row: Row) -> Text:
    return Text(line, row["text"])


FORMAT = Format(
    name="text",
    title="plain text",
    shape='{"text": …}, or a .txt file',
    kind=Text,
    fields=frozenset(("text",)),
    recognises=lambda row: "text" in row,
    mistakes=_mistakes,
    parse=_parse,
    minimum_examples=1,
)
