"""A prompt with its completion (TRL, and OpenAI's first format), and a prompt alone.

Reference: https://huggingface.co/docs/trl/dataset_formats#prompt-completion and #prompt-only
"""

from collections.abc import Iterator

from millrace_examples.format import Format, free_fields
from millrace_examples.kinds import Conversation, Task
from millrace_examples.messages import normal_tools, tools_mistakes
from millrace_examples.prompts import (
    answer_of,
    answer_value_mistakes,
    prompt_of,
    prompt_value_mistakes,
)
from millrace_examples.values import Mistake, Row

_PROMPT_FIELDS = frozenset(("prompt", "tools"))


def _prompt_mistakes(row: Row) -> Iterator[Mistake]:
    yield from prompt_value_mistakes("prompt", row.get("prompt"))
    yield from tools_mistakes(row)


def _mistakes(row: Row) -> Iterator[Mistake]:
    yield from _prompt_mistakes(row)
    yield from answer_value_mistakes("completion", row.get("completion"))


def _parse(line: int, row: Row) -> Conversation:
    """Of all that is said only the completion is learnt."""
    given = tuple(
        {**message, "weight": 0} if message["role"] == "assistant" else message
        for message in prompt_of(row["prompt"])
    )
    return Conversation(line, given + answer_of(row["completion"]), normal_tools(row))


def _parse_task(line: int, row: Row) -> Task:
    item = free_fields(row, _PROMPT_FIELDS)
    return Task(line, prompt_of(row["prompt"]), normal_tools(row), item)


FORMAT = Format(
    name="prompt_completion",
    title="prompts with their completions",
    shape='{"prompt": …, "completion": …}',
    kind=Conversation,
    fields=frozenset(("prompt", "completion", "tools")),
    recognises=lambda row: "prompt" in row and "completion" in row,
    mistakes=_mistakes,
    parse=_parse,
)

PROMPT = Format(
    name="prompt",
    title="prompts with fields for graders",
    shape='{"prompt": …, "answer": …}',
    kind=Task,
    fields=_PROMPT_FIELDS,
    recognises=lambda row: "prompt" in row and "chosen" not in row,
    mistakes=_prompt_mistakes,
    parse=_parse_task,
    takes_all=True,
)
