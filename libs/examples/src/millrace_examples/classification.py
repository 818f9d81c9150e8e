"""Texts, or conversations, with the class that they belong to."""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Classified
from millrace_examples.messages import messages_mistakes, normal_messages
from millrace_examples.prompts import text_mistakes
from millrace_examples.values import Mistake, Row, quoted


def _mistakes(row: Row) -> Iterator[Mistake]:
    if row.get("messages") is None:
        yield from text_mistakes("text", row.get("text"))
    elif row.get("text") is None:
        yield from messages_mistakes("messages", row["messages"], weights=False)
    else:
        yield "text", "stands beside messages; give one of the two"
    label = row.get("label")
    if type(label) not in (str, int) or label == "":
        yield "label", f"must be a string or a whole number, not {quoted(label)}"


def _parse(line: int, row: Row) -> Classified:
    messages = normal_messages(row.get("messages") or [])
    return Classified(line, row.get("text") or "", messages, row["label"])


FORMAT = Format(
    name="classification",
    title="texts with labels",
    shape='{"text": …, "label": …}',
    kind=Classified,
    fields=frozenset(("text", "messages", "label")),
    recognises=lambda row: "label" in row and ("text" in row or "messages" in row),
    mistakes=_mistakes,
    parse=_parse,
)
