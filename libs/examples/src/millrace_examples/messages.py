"""The rules of OpenAI's messages and tools, which most formats share.

Reference: OpenAI's supervised fine-tuning guide and the checks of its cookbook ("Data preparation
and analysis for chat model fine-tuning"). A field that is null is the same as one left out:
a column of parquet holds every field of every message.
"""

import json
from collections.abc import Iterator
from typing import Any

from millrace_examples.kinds import Message, Messages, Tools
from millrace_examples.values import Mistake, Row, flaws, kind_of, place_of, quoted

ROLES = ("system", "developer", "user", "assistant", "tool")
_ASKING = ("user", "developer", "tool")
_ANSWERING = ("assistant", "tool")
_KEYS = frozenset(("role", "content", "name", "weight", "tool_calls", "tool_call_id"))
_REFUSED = {
    "audio": "cannot be learnt; only text is",
    "refusal": "is not learnt; write what the assistant says as content",
    "function_call": "is deprecated; write it as tool_calls",
}
_IGNORED = frozenset(
    ("annotations",)
)  # of answers that the API gave; an empty list teaches nothing


def conversation_mistakes(place: str, messages: object) -> Iterator[Mistake]:
    """Of a conversation to learn: the assistant's part comes last and is not weighted away."""
    yield from messages_mistakes(place, messages, weights=True)
    if not isinstance(messages, list) or not messages:
        return
    last = role_of(messages[-1])
    if last in ROLES and last != "assistant":
        where = f"{place}[{len(messages) - 1}].role"
        yield where, f'the last message must be the assistant\'s, not "{last}"'
    answers = [message for message in messages if role_of(message) == "assistant"]
    if answers and all(_is_weight(a.get("weight")) and a["weight"] == 0 for a in answers):
        yield place, "every assistant message has weight 0: nothing would be learnt"


def prompt_mistakes(place: str, messages: object) -> Iterator[Mistake]:
    """Of what comes before an answer: the assistant does not have the last word."""
    yield from messages_mistakes(place, messages, weights=False)
    if not isinstance(messages, list) or not messages:
        return
    last = role_of(messages[-1])
    if last in ROLES and last not in _ASKING:
        where = f"{place}[{len(messages) - 1}].role"
        yield where, f'the last message must be one of {", ".join(_ASKING)}, not "{last}"'


def answer_mistakes(place: str, messages: object) -> Iterator[Mistake]:
    """Of an answer that is compared: the assistant's, with its tools' replies in between."""
    yield from messages_mistakes(place, messages, weights=False)
    if not isinstance(messages, list) or not messages:
        return
    for index, message in enumerate(messages):
        role = role_of(message)
        if role in ROLES and role not in _ANSWERING:
            yield f"{place}[{index}].role", f'must be assistant or tool, not "{role}"'
    if role_of(messages[-1]) == "tool":
        where = f"{place}[{len(messages) - 1}].role"
        yield where, 'the last message must be the assistant\'s, not "tool"'


def messages_mistakes(place: str, messages: object, *, weights: bool) -> Iterator[Mistake]:
    """The mistakes of each message; ``weights`` says whether they have a meaning here."""
    if not isinstance(messages, list) or not messages:
        yield place, "must be a non-empty list"
        return
    for index, message in enumerate(messages):
        where = f"{place}[{index}]"
        if isinstance(message, dict):
            yield from _message_mistakes(where, message, weights)
        else:
            yield where, f"must be an object, not {kind_of(message)}"


def tools_mistakes(row: Row, place: str = "") -> Iterator[Mistake]:
    """Of ``tools``, ``parallel_tool_calls`` and the deprecated ``functions`` beside messages."""
    where = place_of(place, "tools")
    try:
        tools = _tools_given(row)
    except ValueError as error:
        yield where, f"is a string, but not the JSON of a list: {error}"
        return
    if not isinstance(tools, list):
        yield where, f"must be a list, not {kind_of(tools)}"
    else:
        if isinstance(row.get("tools"), str):
            yield from flaws({where: tools})
        for index, tool in enumerate(tools):
            yield from _tool_mistakes(f"{where}[{index}]", tool)
    if row.get("functions") is not None:
        yield place_of(place, "functions"), "is deprecated; write tools"
    parallel = row.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        message = f"must be true or false, not {quoted(parallel)}"
        yield place_of(place, "parallel_tool_calls"), message


def normal_messages(messages: list[Any]) -> Messages:
    """Messages without mistakes as templates take them: no nulls but an absent content."""
    return tuple(_normal(message) for message in messages)


def normal_tools(row: Row) -> Tools:
    """The tools of a row without mistakes, each ``{"type": "function", "function": …}``."""
    return tuple(
        {"type": "function", **tool}
        if "function" in tool
        else {"type": "function", "function": tool}
        for tool in _tools_given(row)
    )


def role_of(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _message_mistakes(place: str, message: Message, weights: bool) -> Iterator[Mistake]:
    role = message.get("role")
    if role not in ROLES:
        yield f"{place}.role", f"must be one of {', '.join(ROLES)}, not {quoted(role)}"
    for key in sorted(set(message) - _KEYS):
        if message[key] is not None and not (key in _IGNORED and message[key] == []):
            yield place_of(place, key), _REFUSED.get(key, "is not a field of a message")
    yield from _content_mistakes(place, message)
    yield from _weight_mistakes(place, message, weights)
    if message.get("name") is not None and not isinstance(message["name"], str):
        yield f"{place}.name", f"must be a string, not {kind_of(message['name'])}"
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        yield f"{place}.tool_call_id", "must name the tool call that this message answers"
    if message.get("tool_calls") is not None:
        yield from _call_mistakes(f"{place}.tool_calls", role, message["tool_calls"])


def _content_mistakes(place: str, message: Message) -> Iterator[Mistake]:
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and calls:
        return
    if isinstance(content, list):
        yield from _part_mistakes(f"{place}.content", content)
    elif not isinstance(content, str):
        yield f"{place}.content", f"must be a string, not {kind_of(content)}"
    elif not content and message.get("role") in ("user", "assistant") and not calls:
        yield f"{place}.content", "must not be empty"


def _part_mistakes(place: str, parts: list[Any]) -> Iterator[Mistake]:
    if not parts:
        yield place, "must not be empty"
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            yield (
                f"{place}[{index}].type",
                f'must be "text", not {quoted(kind)}; only text is learnt',
            )
        elif not isinstance(part.get("text"), str):
            yield f"{place}[{index}].text", f"must be a string, not {kind_of(part.get('text'))}"


def _weight_mistakes(place: str, message: Message, weights: bool) -> Iterator[Mistake]:
    weight = message.get("weight")
    if weight is None:
        return
    if not weights:
        yield f"{place}.weight", "has no meaning here; remove it"
    elif message.get("role") != "assistant":
        yield f"{place}.weight", "is for assistant messages only"
    elif not _is_weight(weight):
        yield f"{place}.weight", f"must be 0 or 1, not {quoted(weight)}"


def _call_mistakes(place: str, role: object, calls: object) -> Iterator[Mistake]:
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


def _tool_mistakes(place: str, tool: object) -> Iterator[Mistake]:
    if not isinstance(tool, dict):
        yield place, f"must be an object, not {kind_of(tool)}"
        return
    kind = tool.get("type")
    is_wrapped = "function" in tool or "name" not in tool
    if is_wrapped and kind is not None and kind != "function":
        yield f"{place}.type", f'must be "function", not {quoted(kind)}'
    function, where = (tool.get("function"), f"{place}.function") if is_wrapped else (tool, place)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        yield f"{where}.name", "must be a string"
        return
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        yield f"{where}.parameters", f"must be a JSON Schema object, not {kind_of(parameters)}"


def _tools_given(row: Row) -> Any:
    """The tools of a row; datasets keep them as a string, of JSON, so that a column has a type.

    Raises:
        ValueError: the string is no JSON.
    """
    tools = row.get("tools")
    if tools is None or tools == "":
        return []
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _normal(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key in _KEYS and value is not None}
    content = message.get("content")
    if isinstance(content, list):
        kept["content"] = "".join(part["text"] for part in content)
    elif "content" in message:
        kept["content"] = content
    return kept


def _is_weight(value: object) -> bool:
    return type(value) in (int, float) and value in (0, 1)
