"""OpenAI's reinforcement fine-tuning: ``messages`` that end with a question, and free fields.

Reference: https://platform.openai.com/docs/guides/reinforcement-fine-tuning
Every other field of the row is the item that graders read.
"""

from collections.abc import Iterator

from millrace_examples.format import Format, free_fields
from millrace_examples.kinds import Task
from millrace_examples.messages import (
    normal_messages,
    normal_tools,
    prompt_mistakes,
    role_of,
    tools_mistakes,
)
from millrace_examples.openai_chat import FIELDS
from millrace_examples.values import Mistake, Row


def ends_with_question(row: Row) -> bool:
    messages = row.get("messages")
    return isinstance(messages, list) and bool(messages) and role_of(messages[-1]) != "assistant"


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from prompt_mistakes("messages", row.get("messages"))
    yield from tools_mistakes(row)


def _parse(line: int, row: Row) -> Task:
    item = free_fields(row, FIELDS)
    return Task(line, normal_messages(row["messages"]), normal_tools(row), item)


FORMAT = Format(
    name="openai_reinforcement",
    title="prompts with fields for graders",
    shape='{"messages": [{"role": "user", …}], "reference_answer": …}',
    kind=Task,
    fields=FIELDS,
    recognises=ends_with_question,
    mistakes=_mistakes,
    parse=_parse,
    takes_all=True,
)
