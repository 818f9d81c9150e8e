"""What a row of a training file means, whatever format it was written in.

Messages are OpenAI's: ``role``, ``content`` and, where they are given, ``name``, ``weight``,
``tool_calls``, ``tool_call_id``. ``line`` counts from 1: a line of a text file, a row of parquet.
"""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Messages = tuple[Message, ...]
Tools = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Conversation:
    """Learn the assistant's messages, but for those of weight 0."""

    line: int
    messages: Messages
    tools: Tools = ()


@dataclass(frozen=True)
class Preference:
    """After ``messages``, ``preferred`` is a better continuation than ``rejected``."""

    line: int
    messages: Messages
    tools: Tools
    preferred: Messages
    rejected: Messages


@dataclass(frozen=True)
class Judged:
    """After ``messages``, ``completion`` was found good, or was not."""

    line: int
    messages: Messages
    completion: Messages
    is_good: bool
    tools: Tools = ()


@dataclass(frozen=True)
class Task:
    """A prompt to sample answers to; ``item`` is what graders read as ``item.…``."""

    line: int
    messages: Messages
    tools: Tools = ()
    item: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """Text as it is, without roles."""

    line: int
    text: str


@dataclass(frozen=True)
class Classified:
    """A text, or a conversation, and the class it belongs to; one of the two is empty."""

    line: int
    text: str
    messages: Messages
    label: str | int


@dataclass(frozen=True)
class Pair:
    """A text and what a sequence-to-sequence model makes of it."""

    line: int
    source: str
    target: str


@dataclass(frozen=True)
class Columns:
    """A row of a table, for a prompt template: ``values`` are strings, numbers, true or false."""

    line: int
    values: dict[str, Any]


Example = Conversation | Preference | Judged | Task | Text | Classified | Pair | Columns
