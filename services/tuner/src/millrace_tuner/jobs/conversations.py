"""Reading a fine-tuning file: JSON lines, each ``{"messages": [...], "tools": [...]}``.

Format: OpenAI's supervised fine-tuning guide. The data service checks an upload in the same
way; a job checks again, because what it reads may have come by another road. Standard library
only, so that a bad file is refused before anything heavy is imported.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_runtime.jobs import JobError

ROLES = ("system", "developer", "user", "assistant", "tool")
_EXAMPLE_KEYS = frozenset(("messages", "tools", "parallel_tool_calls"))
_MESSAGE_KEYS = frozenset(
    ("role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal")
)


@dataclass(frozen=True)
class Conversation:
    """One training example as its user wrote it; ``line`` counts from 1."""

    line: int
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


class Mistake(Exception):
    """What is wrong with one line, and in which field of it."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}" if place else message)


def read_conversations(path: Path, expected_sha256: str, purpose: str) -> list[Conversation]:
    """All examples of a file whose content is proven by its digest; blank lines are skipped.

    ``purpose`` names the file in messages: "training file", "validation file".

    Raises:
        JobError: FILE_CHANGED when the digest differs, FILE_MISSING, INVALID_EXAMPLE naming line
            and field, EMPTY_FILE.
    """
    content = _read_verified(path, expected_sha256, purpose)
    conversations = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            conversations.append(parse_conversation(number, line))
        except Mistake as mistake:
            message = f"{purpose}, line {number}: {mistake}; correct the line and upload again"
            raise JobError("INVALID_EXAMPLE", message) from None
    if not conversations:
        message = f"the {purpose} holds no examples; upload at least one conversation"
        raise JobError("EMPTY_FILE", message)
    return conversations


def _read_verified(path: Path, expected_sha256: str, purpose: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JobError("FILE_MISSING", f"the {purpose} is not at {path}; upload it again") from None
    found = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if found != expected_sha256:
        message = f"the {purpose} is {found}, expected {expected_sha256}; upload it again"
        raise JobError("FILE_CHANGED", message)
    return content


def parse_conversation(number: int, line: bytes) -> Conversation:
    """One line as a conversation.

    Raises:
        Mistake: naming the field at fault, such as ``messages[1].role``.
    """
    try:
        example = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Mistake("", f"is not UTF-8 (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise Mistake("", f"is not JSON ({error})") from None
    if not isinstance(example, dict):
        raise Mistake("", "must be a JSON object")
    for place, message in _example_mistakes(example):
        raise Mistake(place, message)
    return Conversation(number, tuple(example["messages"]), tuple(example.get("tools") or ()))


def _example_mistakes(example: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in sorted(set(example) - _EXAMPLE_KEYS):
        yield key, f"is not a field of an example; it has {', '.join(sorted(_EXAMPLE_KEYS))}"
    messages = example.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages", "must be a non-empty list"
        return
    for index, message in enumerate(messages):
        yield from _message_mistakes(f"messages[{index}]", message)
    if messages[-1]["role"] != "assistant":
        place = f"messages[{len(messages) - 1}].role"
        yield place, f"the last message must be the assistant's, not {messages[-1]['role']!r}"
    if not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
        yield "messages", "every assistant message has weight 0: there is nothing to learn"
    yield from _tool_mistakes(example.get("tools"))


def _message_mistakes(place: str, message: object) -> Iterator[tuple[str, str]]:
    if not isinstance(message, dict):
        yield place, "must be an object"
        return
    role = message.get("role")
    if role not in ROLES:
        yield f"{place}.role", f"must be one of {', '.join(ROLES)}, not {json.dumps(role)}"
    for key in sorted(set(message) - _MESSAGE_KEYS):
        yield f"{place}.{key}", "is not a field of a message"
    yield from _content_mistakes(place, message)
    if "weight" in message:
        if role != "assistant":
            yield f"{place}.weight", "is for assistant messages only"
        elif type(message["weight"]) not in (int, float) or message["weight"] not in (0, 1):
            yield f"{place}.weight", f"must be 0 or 1, not {json.dumps(message['weight'])}"


def _content_mistakes(place: str, message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None:
        if message.get("role") != "assistant":
            yield f"{place}.tool_calls", "is for assistant messages only"
        yield from _call_mistakes(f"{place}.tool_calls", calls)
    if content is None and calls:
        return
    if not isinstance(content, str):
        yield f"{place}.content", "must be a string"
        return
    if not content and message.get("role") in ("user", "assistant") and not calls:
        yield f"{place}.content", "must not be empty"
    if any("\ud800" <= character <= "\udfff" for character in content):
        yield f"{place}.content", "has half a surrogate pair, which UTF-8 cannot hold"


def _call_mistakes(place: str, calls: object) -> Iterator[tuple[str, str]]:
    if not isinstance(calls, list) or not calls:
        yield place, "must be a non-empty list"
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        for key in ("name", "arguments"):
            if not isinstance(function, dict) or not isinstance(function.get(key), str):
                yield f"{place}[{index}].function.{key}", "must be a string"


def _tool_mistakes(tools: object) -> Iterator[tuple[str, str]]:
    if tools is None:
        return
    if not isinstance(tools, list):
        yield "tools", "must be a list"
        return
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            yield f"tools[{index}].function.name", "must be a string"
