"""OpenAI's supervised fine-tuning: ``{"messages": […], "tools": […]}``.

Reference: https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

from collections.abc import Iterator

from millrace_examples.format import Format
from millrace_examples.kinds import Conversation
from millrace_examples.messages import (
    conversation_mistakes,
    normal_messages,
    normal_tools,
    tools_mistakes,
)
from millrace_examples.values import Mistake, Row

FIELDS = frozenset(("messages", "tools", "parallel_tool_calls", "functions"))


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from conversation_mistakes("messages", row.get("messages"))
    yield from tools_mistakes(row)


def _parse(line: int, row: Row) -> Conversation:
    return Conversation(line, normal_messages(row["messages"]), normal_tools(row))


FORMAT = Format(
    name="openai_chat",
    title="chat conversations",
    shape='{"messages": [{"role": "user", …}, {"role": "assistant", …}]}',
    kind=Conversation,
    fields=FIELDS,
    recognises=lambda row: "messages" in row,
    mistakes=_mistakes,
    parse=_parse,
    is_strict=True,
)
