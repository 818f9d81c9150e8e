"""Prompt templates: messages with ``{{variables}}``, and few-shot examples before the question.

A template as its user writes it, a JSON object:

    messages   OpenAI's chat messages; a text may hold ``{{name}}``, with spaces around the name
    variables  optional: name → {"default": …, "description": …}; those that stand in the texts
               and not here have to be given
    examples   optional: {"input": …, "output": …}, or {"messages": […]} that end with an answer;
               their texts are taken as they are
    tools      optional, as OpenAI's

Serving and tuning render with the same function, so that a tuned model is asked as it was taught.
There is no escape for ``{{name}}``: whoever wants it as text gives it as a variable's value.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from millrace_examples.kinds import Message, Messages, Tools
from millrace_examples.messages import (
    messages_mistakes,
    normal_messages,
    normal_tools,
    role_of,
    tools_mistakes,
)
from millrace_examples.prompts import optional_text_mistakes, said_by, text_mistakes
from millrace_examples.values import Mistake, Row, flaws, kind_of, place_of, quoted

MAXIMUM_VARIABLES = 128
_FIELDS = frozenset(("messages", "variables", "examples", "tools"))
_PAIR, _VARIABLE = frozenset(("input", "output")), frozenset(("default", "description"))
_LEADING = ("system", "developer")
_ANSWERED = ("user", "assistant", "tool")
# What is meant as a variable, rightly named or not; JSON in double braces is text.
_PLACE = re.compile(r"\{\{[^\S\n]*([^{}\"\s][^{}\"\n]*?)[^\S\n]*\}\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_NAME_RULE = "a name has letters, digits, _ and -, begins with a letter or _, and has 64 at most"


class VariableError(Exception):
    """A variable is missing, or there is none of this ``name``; the text does not repeat it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Variable:
    """``default`` None: it has to be given."""

    name: str
    default: str | None = None
    description: str = ""


@dataclass(frozen=True)
class Template:
    """``examples`` stand after the leading system and developer messages."""

    messages: Messages
    variables: tuple[Variable, ...] = ()
    examples: Messages = ()
    tools: Tools = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def asks(self) -> bool:
        """Whether it ends with a question, to which an answer can be learnt."""
        return self.messages[-1]["role"] in ("user", "tool")


def template_mistakes(document: object) -> Iterator[Mistake]:
    """What is wrong with a template as its user wrote it."""
    if not isinstance(document, dict):
        yield "", f"must be an object, not {kind_of(document)}"
        return
    found = list(flaws(document))
    yield from found
    if found:
        return
    for key in sorted(set(document) - _FIELDS):
        yield (
            place_of("", key),
            "is not a field of a prompt; it has messages, variables, examples, tools",
        )
    yield from messages_mistakes("messages", document.get("messages"), weights=False)
    yield from tools_mistakes(document)
    yield from _examples_mistakes(document.get("examples"))
    yield from _variables_mistakes(document)


def normal_template(document: Row) -> Row:
    """A document without mistakes in the one form of all that mean the same.

    Contents are strings, examples are messages, and every variable is listed.
    """
    messages = normal_messages(document["messages"])
    given = document.get("variables") or {}
    kept = {
        name: {key: value for key, value in (given.get(name) or {}).items() if value is not None}
        for name in _names_in(messages)
    }
    normal: Row = {"messages": list(messages), "variables": kept}
    if document.get("examples"):
        normal["examples"] = [{"messages": list(_example(one))} for one in document["examples"]]
    if tools := normal_tools(document):
        normal["tools"] = list(tools)
    return normal


def template_of(document: Row) -> Template:
    """The meaning of what ``normal_template`` made."""
    return Template(
        messages=tuple(document["messages"]),
        variables=tuple(Variable(name, **said) for name, said in document["variables"].items()),
        examples=tuple(
            message for one in document.get("examples", ()) for message in one["messages"]
        ),
        tools=tuple(document.get("tools", ())),
    )


def canonical_json(document: Row) -> str:
    """One text for equal documents; its digest identifies a template."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def template_digest(document: Row) -> str:
    """``sha256:`` + hex."""
    return f"sha256:{hashlib.sha256(canonical_json(document).encode()).hexdigest()}"


def render(template: Template, values: Mapping[str, str]) -> Messages:
    """The messages with every variable's value in its place, as text and nothing else.

    ``developer`` is OpenAI's newer word for ``system``; models are trained on the older.

    Raises:
        VariableError: a variable has no value, or a value no variable.
    """
    given = _complete(template, values)
    filled = tuple(_filled(message, given) for message in template.messages)
    head = _leading_count(filled)
    return filled[:head] + template.examples + filled[head:]


def _complete(template: Template, values: Mapping[str, str]) -> dict[str, str]:
    known = ", ".join(template.names) or "none"
    for name in values:
        if name not in template.names:
            raise VariableError(name, f"is no variable of the prompt, which has {known}")
    given = {**{one.name: one.default for one in template.variables}, **values}
    complete = {name: value for name, value in given.items() if value is not None}
    for name in template.names:
        if name not in complete:
            raise VariableError(name, "is a variable of the prompt without a default: give it")
    return complete


def _filled(message: Message, given: Mapping[str, str]) -> Message:
    role = "system" if message["role"] == "developer" else message["role"]
    content = message.get("content")
    if content:
        content = _PLACE.sub(lambda place: given[place[1]], content)
    return {**message, "role": role, "content": content}


def _leading_count(messages: Messages) -> int:
    roles = enumerate(message["role"] for message in messages)
    return next((index for index, role in roles if role not in _LEADING), len(messages))


def _names_in(messages: Messages) -> list[str]:
    """The variables of all texts, each once, in their order."""
    texts = [message.get("content") or "" for message in messages]
    return list(dict.fromkeys(place[1] for text in texts for place in _PLACE.finditer(text)))


def _example(one: Row) -> Messages:
    if one.get("messages") is not None:
        return normal_messages(one["messages"])
    return (said_by("user", one["input"]), said_by("assistant", one["output"]))


def _examples_mistakes(examples: object) -> Iterator[Mistake]:
    if examples is None:
        return
    if not isinstance(examples, list):
        yield "examples", f"must be a list, not {kind_of(examples)}"
        return
    for index, one in enumerate(examples):
        yield from _example_mistakes(f"examples[{index}]", one)


def _example_mistakes(place: str, one: object) -> Iterator[Mistake]:
    if not isinstance(one, dict):
        yield place, f"must be an object, not {kind_of(one)}"
        return
    has_messages = one.get("messages") is not None
    for key in sorted(set(one) - ({"messages"} if has_messages else _PAIR)):
        if one[key] is not None:
            yield place_of(place, key), "is no part of an example: input and output, or messages"
    if has_messages:
        yield from _answered_mistakes(f"{place}.messages", one["messages"])
        return
    for key in ("input", "output"):
        yield from text_mistakes(f"{place}.{key}", one.get(key))


def _answered_mistakes(place: str, messages: object) -> Iterator[Mistake]:
    yield from messages_mistakes(place, messages, weights=False)
    if not isinstance(messages, list) or not messages:
        return
    for index, role in enumerate(map(role_of, messages)):
        if role in _LEADING:
            said = f"must be {', '.join(_ANSWERED)} in an example, not {quoted(role)}"
            yield f"{place}[{index}].role", said
    if role_of(messages[-1]) in ("user", "tool"):
        yield f"{place}[{len(messages) - 1}].role", "the last message must be the assistant's"


def _variables_mistakes(document: Row) -> Iterator[Mistake]:
    texts = dict(_texts(document.get("messages")))
    names: set[str] = set()
    for where, text in texts.items():
        for place in _PLACE.finditer(text):
            names.add(place[1])
            if not _NAME.fullmatch(place[1]):
                yield where, f"{{{{{place[1][:64]}}}}} is no variable: {_NAME_RULE}"
    if len(names) > MAXIMUM_VARIABLES:
        yield "messages", f"hold {len(names)} variables, at most {MAXIMUM_VARIABLES} are allowed"
    given = document.get("variables")
    if given is None:
        return
    if not isinstance(given, dict):
        yield "variables", f"must be an object, not {kind_of(given)}"
        return
    for name, said in given.items():
        yield from _variable_mistakes(place_of("variables", name), said)
        if name not in names:
            yield place_of("variables", name), "stands in no message as {{…}}"


def _variable_mistakes(place: str, said: object) -> Iterator[Mistake]:
    if said is None:
        return
    if not isinstance(said, dict):
        yield place, f"must be an object, not {kind_of(said)}"
        return
    for key in sorted(set(said) - _VARIABLE):
        yield place_of(place, key), "is no part of a variable: default, description"
    for key in ("default", "description"):
        yield from optional_text_mistakes(f"{place}.{key}", said.get(key))


def _texts(messages: object) -> Iterator[tuple[str, str]]:
    """Every text of messages, right or wrong, with its place."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content: Any = message.get("content") if isinstance(message, dict) else None
        where = f"messages[{index}].content"
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(text for text in parts if isinstance(text, str))
        if isinstance(content, str):
            yield where, content
