"""The file format of chat fine-tuning: one JSON object a line, each a whole conversation.

Format: OpenAI's supervised fine-tuning guide and the checks of its cookbook ("Data preparation
and analysis for chat model fine-tuning"). Standard library only, so that the service checks an
upload while it streams in, and a job checks the same file with the same words.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

ROLES = ("system", "developer", "user", "assistant", "tool")
MINIMUM_EXAMPLES = 10  # OpenAI refuses a fine-tuning file with fewer
MAXIMUM_PROBLEMS = 20
MAXIMUM_LINE_BYTES = 4 * 1024 * 1024
_MESSAGE_KEYS = frozenset(
    ("role", "content", "name", "weight", "tool_calls", "tool_call_id", "refusal", "audio")
)


@dataclass(frozen=True)
class Problem:
    """One mistake. ``line`` counts from 1 and is None when the file as a whole is at fault;
    ``field`` is a path such as ``messages[1].role``, empty when the line as a whole is."""

    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        place = "file" if self.line is None else f"line {self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


@dataclass(frozen=True)
class ChatReport:
    """What a file holds: its examples, and its first ``MAXIMUM_PROBLEMS`` mistakes."""

    examples: int
    problems: tuple[Problem, ...] = field(default=())

    @property
    def valid(self) -> bool:
        return not self.problems


def validate_chat_jsonl(
    lines: Iterable[bytes], minimum_examples: int = MINIMUM_EXAMPLES
) -> ChatReport:
    """Check every line (blank ones are skipped); reading stops at ``MAXIMUM_PROBLEMS`` mistakes."""
    examples = 0
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        examples += 1
        problems += line_problems(number, line)
        if len(problems) >= MAXIMUM_PROBLEMS:
            return ChatReport(examples, tuple(problems[:MAXIMUM_PROBLEMS]))
    if examples < minimum_examples:
        message = f"has {examples} examples; fine-tuning needs at least {minimum_examples}"
        problems.append(Problem(None, "", message))
    return ChatReport(examples, tuple(problems))


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of ``stream``; of one longer than ``MAXIMUM_LINE_BYTES`` only the beginning.

    So a file without newlines costs no more memory than the longest line that is allowed.
    """
    while line := stream.readline(MAXIMUM_LINE_BYTES + 1):
        yield line
        while len(line) > MAXIMUM_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAXIMUM_LINE_BYTES + 1)


def line_problems(number: int, line: bytes) -> list[Problem]:
    """The mistakes of one line, which must be UTF-8 and a JSON object."""
    if len(line) > MAXIMUM_LINE_BYTES:
        return [Problem(number, "", f"is longer than {MAXIMUM_LINE_BYTES} bytes")]
    try:
        example = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return [Problem(number, "", f"is not UTF-8 (byte {error.start})")]
    except (ValueError, RecursionError) as error:
        return [Problem(number, "", f"is not JSON: {error}")]
    if not isinstance(example, dict):
        return [Problem(number, "", f"must be a JSON object, not {_kind(example)}")]
    return [Problem(number, place, message) for place, message in example_problems(example)]


def example_problems(example: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The mistakes of one conversation as (field path, what is wrong)."""
    messages = example.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages", "must be a non-empty list"
        return
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if isinstance(message, dict):
            yield from _message_problems(place, message)
        else:
            yield place, f"must be an object, not {_kind(message)}"
    yield from _answer_problems(messages)


def _answer_problems(messages: list[Any]) -> Iterator[tuple[str, str]]:
    """What is learnt is the assistant's part: it must come last and not be weighted away."""
    answers = [m for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") in ROLES and last["role"] != "assistant":
        place = f"messages[{len(messages) - 1}].role"
        yield place, f'the last message must be the assistant\'s, not "{last["role"]}"'
    if answers and all(_is_weight(m.get("weight", 1)) and m.get("weight") == 0 for m in answers):
        yield "messages", "every assistant message has weight 0: nothing would be learnt"


def _message_problems(place: str, message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    role = message.get("role")
    if role not in ROLES:
        yield f"{place}.role", f"must be one of {', '.join(ROLES)}, not {json.dumps(role)}"
    for key in sorted(set(message) - _MESSAGE_KEYS):
        yield f"{place}.{key}", "is not a field of a message"
    yield from _content_problems(place, message)
    yield from _encoding_problems(place, message)
    if "weight" in message:
        if role != "assistant":
            yield f"{place}.weight", "is for assistant messages only"
        elif not _is_weight(message["weight"]):
            yield f"{place}.weight", f"must be 0 or 1, not {json.dumps(message['weight'])}"
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        yield f"{place}.tool_call_id", "must name the tool call that this message answers"
    if "tool_calls" in message:
        yield from _tool_call_problems(f"{place}.tool_calls", role, message["tool_calls"])


def _content_problems(place: str, message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if not isinstance(content, str):
        yield f"{place}.content", f"must be a string, not {_kind(content)}"
    elif not content and message.get("role") in ("user", "assistant"):
        yield f"{place}.content", "must not be empty"


def _encoding_problems(place: str, message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """JSON can spell half a surrogate pair (``\\ud800``), which is no character in UTF-8."""
    content = message.get("content")
    if isinstance(content, str) and not encodable(content):
        yield f"{place}.content", "has half a surrogate pair, which UTF-8 cannot hold"


def _tool_call_problems(place: str, role: object, calls: object) -> Iterator[tuple[str, str]]:
    if role != "assistant":
        yield place, "is for assistant messages only"
    if not isinstance(calls, list) or not calls:
        yield place, "must be a non-empty list"
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            yield f"{place}[{index}].function", "must be an object"
            continue
        for key in ("name", "arguments"):
            if not isinstance(function.get(key), str):
                yield f"{place}[{index}].function.{key}", "must be a string"


def encodable(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_weight(value: object) -> bool:
    return type(value) in (int, float) and value in (0, 1)


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "true or false" if isinstance(value, bool) else "a number")
