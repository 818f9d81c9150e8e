"""ShareGPT's format: ``conversations`` of turns ``{"from": …, "value": …}``.

Reference: LLaMA-Factory, data/README.md. ``from`` may be human, gpt, function_call, observation
or system; the other names that data sets use are known too. Turns written as OpenAI's messages
(``role``, ``content``) are taken as they are.
"""

import json
from collections.abc import Iterator
from typing import Any

from millrace_examples.format import Format
from millrace_examples.kinds import Conversation, Judged, Message, Preference
from millrace_examples.kto import judgement_mistakes
from millrace_examples.messages import (
    answer_mistakes,
    conversation_mistakes,
    normal_messages,
    normal_tools,
    prompt_mistakes,
    tools_mistakes,
)
from millrace_examples.preference import sameness
from millrace_examples.prompts import optional_text_mistakes
from millrace_examples.values import Mistake, Row, flaws, kind_of, place_of, quoted

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
_SHOWN_ROLES = "human, gpt, system, function_call, observation"
_TURN_FIELDS = frozenset(("from", "value", "weight"))
_FIELDS = frozenset(("conversations", "system", "tools"))


def _turn_mistakes(place: str, turn: object) -> Iterator[Mistake]:
    if not isinstance(turn, dict):
        yield place, f"must be an object, not {kind_of(turn)}"
        return
    if _is_message(turn):
        return
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        yield f"{place}.from", f"must be one of {_SHOWN_ROLES}, not {quoted(speaker)}"
    for key in sorted(set(turn) - _TURN_FIELDS):
        if turn[key] is not None:
            yield place_of(place, key), "is not a field of a turn"
    if not isinstance(value, str):
        yield f"{place}.value", f"must be a string, not {kind_of(value)}"
    elif speaker == "function_call":
        yield from _call_mistakes(f"{place}.value", value)


def _call_mistakes(place: str, value: str) -> Iterator[Mistake]:
    try:
        calls = _calls(value)
    except (ValueError, RecursionError):
        yield place, 'must be the JSON of {"name": …, "arguments": …}, or of a list of them'
        return
    yield from flaws({place: calls})
    for call in calls:
        named = isinstance(call, dict) and isinstance(call.get("name"), str)
        if not named or not isinstance(call.get("arguments", {}), dict | str):
            yield place, 'must be the JSON of {"name": …, "arguments": …}, or of a list of them'


def _calls(value: str) -> list[Any]:
    found = json.loads(value)
    return found if isinstance(found, list) and found else [found]


def _is_message(turn: Row) -> bool:
    return "role" in turn and turn.get("from") is None


def _turns_mistakes(row: Row) -> Iterator[Mistake]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        yield "conversations", "must be a non-empty list"
        return
    for index, turn in enumerate(turns):
        yield from _turn_mistakes(f"conversations[{index}]", turn)
    yield from optional_text_mistakes("system", row.get("system"))
    yield from tools_mistakes(row)


def _messages(row: Row, *more: Row) -> list[Message]:
    """The turns as OpenAI's messages; the ids of calls are numbers in order."""
    turns = [*row["conversations"], *more]
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    made, answered = 0, 0
    for turn in turns:
        if _is_message(turn):
            messages.append(turn)
            continue
        message = _message(turn, made, answered)
        made += len(message.get("tool_calls", ()))
        answered += message["role"] == "tool"
        messages.append(message)
    return messages


def _message(turn: Row, calls_made: int, calls_answered: int) -> Message:
    role = _ROLES[turn["from"]]
    message: Message = {"role": role, "content": turn["value"]}
    if turn["from"] == "function_call":
        calls = enumerate(_calls(turn["value"]), start=calls_made)
        message["content"] = None
        message["tool_calls"] = [_tool_call(f"call_{number}", call) for number, call in calls]
    if role == "tool":
        message["tool_call_id"] = f"call_{calls_answered}"
    if turn.get("weight") is not None:
        message["weight"] = turn["weight"]
    return message


def _tool_call(identifier: str, call: Row) -> Row:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["name"], "arguments": text}
    return {"id": identifier, "type": "function", "function": function}


def _in_turns(row: Row, found: Iterator[Mistake]) -> Iterator[Mistake]:
    """Mistakes of the messages, named as the turns that they were made from."""
    shift = 1 if row.get("system") else 0
    for place, message in found:
        index, _, rest = place.removeprefix("conversations[").partition("]")
        if place == "conversations" or not index.isdigit():
            yield place, message
            continue
        number = int(index) - shift
        rest = rest.replace(".role", ".from").replace(".content", ".value")
        yield ("system" if number < 0 else f"conversations[{number}]{rest}"), message


def _mistakes(row: Row) -> Iterator[Mistake]:
    found = list(_turns_mistakes(row))
    yield from found
    if not found:
        yield from _in_turns(row, conversation_mistakes("conversations", _messages(row)))


def _parse(line: int, row: Row) -> Conversation:
    return Conversation(line, normal_messages(_messages(row)), normal_tools(row))


def _preference_mistakes(row: Row) -> Iterator[Mistake]:
    found = list(_turns_mistakes(row))
    for key in ("chosen", "rejected"):
        found += _turn_mistakes(key, row.get(key))
    yield from found
    if found:
        return
    yield from _in_turns(row, prompt_mistakes("conversations", _messages(row)))
    for key in ("chosen", "rejected"):
        for place, message in answer_mistakes(key, _messages(row, row[key])[-1:]):
            yield place.replace("[0].role", ".from").replace("[0].content", ".value"), message
    yield from sameness(row)


def _parse_preference(line: int, row: Row) -> Preference:
    messages = normal_messages(_messages(row))
    chosen, rejected = (
        normal_messages(_messages(row, row[key])[-1:]) for key in ("chosen", "rejected")
    )
    return Preference(line, messages, normal_tools(row), chosen, rejected)


def _kto_mistakes(row: Row) -> Iterator[Mistake]:
    yield from _mistakes(row)
    yield from judgement_mistakes(row, "kto_tag")


def _parse_kto(line: int, row: Row) -> Judged:
    messages = normal_messages(_messages(row))
    return Judged(line, messages[:-1], messages[-1:], row["kto_tag"], normal_tools(row))


FORMAT = Format(
    name="sharegpt",
    title="conversations as ShareGPT has them",
    shape='{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}',
    kind=Conversation,
    fields=_FIELDS,
    recognises=lambda row: "conversations" in row,
    mistakes=_mistakes,
    parse=_parse,
)

PREFERENCE = Format(
    name="sharegpt_preference",
    title="preference pairs as ShareGPT has them",
    shape='{"conversations": […], "chosen": {"from": "gpt", …}, "rejected": {"from": "gpt", …}}',
    kind=Preference,
    fields=_FIELDS | {"chosen", "rejected"},
    recognises=lambda row: "conversations" in row and ("chosen" in row or "rejected" in row),
    mistakes=_preference_mistakes,
    parse=_parse_preference,
)

KTO = Format(
    name="sharegpt_kto",
    title="judged conversations as ShareGPT has them",
    shape='{"conversations": […], "kto_tag": true}',
    kind=Judged,
    fields=_FIELDS | {"kto_tag"},
    recognises=lambda row: "conversations" in row and "kto_tag" in row,
    mistakes=_kto_mistakes,
    parse=_parse_kto,
)
