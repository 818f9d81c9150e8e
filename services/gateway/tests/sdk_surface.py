"""What the ``openai`` package's resources are asked and answer, by their signatures and types."""

import functools
import inspect
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

import openai
from typing_extensions import is_typeddict

NOUNS = ("fine_tuning", "files", "uploads", "models", "webhooks")
_OF_EVERY_CALL = frozenset(("self", "extra_headers", "extra_query", "extra_body", "timeout"))
# A grader is the same wherever it stands.
_GRADER = re.compile(r"^(method\.reinforcement\.)?grader(\.graders(?=\.))?(?=\.|$)")


@dataclass(frozen=True)
class Call:
    """One method of the package; fields are paths, of unions those of every member."""

    name: str
    asked: Sequence[str]
    answered: Sequence[str]


def calls(nouns: Sequence[str] = NOUNS) -> Iterator[Call]:
    for name, resource in _resources(nouns):
        for method, function in inspect.getmembers(type(resource), inspect.isfunction):
            if not method.startswith(("_", "with_")):
                yield _call(f"{name}.{method}", inspect.unwrap(function))


def _resources(nouns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    client = openai.OpenAI(api_key="none")
    open_ends = [(noun, getattr(client, noun)) for noun in nouns]
    while open_ends:
        name, resource = open_ends.pop(0)
        yield name, resource
        for attribute, value in inspect.getmembers(type(resource)):
            is_part = isinstance(value, functools.cached_property)
            if is_part and not attribute.startswith(("_", "with_")):
                open_ends.append((f"{name}.{attribute}", getattr(resource, attribute)))


def _call(name: str, function: Any) -> Call:
    hints = get_type_hints(function)
    asked: list[str] = []
    for parameter in inspect.signature(function).parameters:
        if parameter not in _OF_EVERY_CALL:
            asked += (parameter, *_fields(hints.get(parameter), parameter))
    return Call(name, _distinct(asked), _distinct(_fields(hints.get("return"), "")))


def _fields(hint: Any, prefix: str, within: tuple[Any, ...] = ()) -> Iterator[str]:
    """The paths of all fields within a type: its own, and its parameters' (a page's items)."""
    if hint in within:
        return
    for argument in get_args(hint):
        yield from _fields(argument, prefix, within)
    for name, type in _own_fields(get_origin(hint) or hint).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path
        # What a list answers are its items.
        is_items = path == "data" and get_origin(type) in (list, typing.List)  # noqa: UP006
        yield from _fields(type, "" if is_items else path, (*within, hint))


def _own_fields(type: Any) -> dict[str, Any]:
    if is_typeddict(type):
        return get_type_hints(type)
    if inspect.isclass(type) and issubclass(type, openai.BaseModel):
        return {name: field.annotation for name, field in type.model_fields.items()}
    return {}


def _distinct(paths: Any) -> Sequence[str]:
    return tuple(dict.fromkeys(_GRADER.sub("grader", path) for path in paths))
