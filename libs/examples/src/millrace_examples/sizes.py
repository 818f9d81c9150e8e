"""How large an example is, without the model's tokenizer.

The estimate: a token for every 4 bytes of UTF-8, which is what byte-level BPE makes of English,
and 4 for the marks of every message. The exact count is the job's, with the model's tokenizer.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from millrace_examples.kinds import (
    Classified,
    Columns,
    Conversation,
    Example,
    Judged,
    Messages,
    Pair,
    Preference,
    Task,
    Text,
    Tools,
)
from millrace_examples.table import text_of

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True)
class Size:
    """``characters`` are those of contents, calls and tools; ``tokens`` is an estimate."""

    messages: int
    characters: int
    tokens: int


def size_of(example: Example) -> Size:
    messages = messages_of(example)
    texts = [*_texts(example), *(text for message in messages for text in _said(message))]
    written = sum(len(text.encode("utf-8")) for text in texts)
    tokens = -(-written // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(messages)
    return Size(len(messages), sum(len(text) for text in texts), tokens)


def messages_of(example: Example) -> Messages:
    """Every message of an example, its answers included."""
    match example:
        case Preference():
            return example.messages + example.preferred + example.rejected
        case Judged():
            return example.messages + example.completion
        case Conversation() | Task() | Classified():
            return example.messages
        case Text() | Pair() | Columns():
            return ()


def _texts(example: Example) -> Iterator[str]:
    """What an example holds beside its messages; an item is for graders, not for the model."""
    match example:
        case Text():
            yield example.text
        case Pair():
            yield from (example.source, example.target)
        case Classified():
            yield example.text
        case Columns():
            yield from (text_of(value) for value in example.values.values())
        case Conversation() | Preference() | Judged() | Task():
            yield from _tools(example.tools)


def _tools(tools: Tools) -> Iterator[str]:
    return (json.dumps(tool, ensure_ascii=False) for tool in tools)


def _said(message: dict[str, object]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    if message.get("tool_calls"):
        yield json.dumps(message["tool_calls"], ensure_ascii=False)
