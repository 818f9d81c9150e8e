"""Templates of graders: ``{{ item.question }}``, ``{{ sample.output_text }}``.

Only look-ups: a name after a dot, an index or a quoted name in brackets. There are no filters, no
statements and no expressions, so a template can do nothing but read the sample and the item.
``{%`` is text like any other.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAXIMUM_LENGTH = 256 * 1024
NAMESPACES = ("item", "sample")
SAMPLE_NAMES = ("output_text", "output_json", "output_tools", "choices")

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_ROOT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEP = re.compile(
    r"\s*(?:\.\s*(?P<name>[A-Za-z_][A-Za-z0-9_-]*)"
    r"|\[\s*(?:(?P<index>-?\d{1,9})|\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)')\s*\])"
)
_MISSING = object()

Path: TypeAlias = tuple[str | int, ...]


class TemplateError(ValueError):
    """The template cannot be read; says what is wrong."""


class UnknownVariable(LookupError):
    """The sample or the item has no such value.

    Attributes:
        variable: as the template names it.
        is_unparsed_sample: it is in ``sample.output_json``, and the sample is no JSON.
    """

    def __init__(self, variable: str, *, is_unparsed_sample: bool = False) -> None:
        why = ": the sample's text is not JSON" if is_unparsed_sample else ""
        super().__init__(f"there is no {variable!r}{why}")
        self.variable = variable
        self.is_unparsed_sample = is_unparsed_sample


@dataclass(frozen=True)
class _Variable:
    text: str
    path: Path


@dataclass(frozen=True)
class Template:
    """A text with places for values."""

    text: str
    pieces: tuple[str | _Variable, ...]

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with its values: strings as they are, everything else as JSON.

        ``values`` holds ``item`` and ``sample``.

        Raises:
            UnknownVariable
        """
        return "".join(
            piece if isinstance(piece, str) else _shown(_value(piece, values))
            for piece in self.pieces
        )

    def missing(self, item: Mapping[str, Any]) -> Iterator[str]:
        """What the template reads of an item that this one does not have."""
        for piece in self.pieces:
            if isinstance(piece, _Variable) and piece.path[0] == "item":
                try:
                    _value(piece, {"item": item})
                except UnknownVariable as error:
                    yield error.variable


def parse(text: str) -> Template:
    """Read a template.

    Raises:
        TemplateError
    """
    if len(text) > MAXIMUM_LENGTH:
        raise TemplateError(f"is longer than {MAXIMUM_LENGTH} characters")
    pieces: list[str | _Variable] = []
    end = 0
    for place in _PLACE.finditer(text):
        if place.start() > end:
            pieces.append(text[end : place.start()])
        pieces.append(_variable(place[1].strip()))
        end = place.end()
    if "{{" in text[end:]:
        raise TemplateError("a '{{' is never closed with '}}'")
    if text[end:]:
        pieces.append(text[end:])
    return Template(text, tuple(pieces))


def _variable(text: str) -> _Variable:
    root = _ROOT.match(text)
    if root is None or root[0] not in NAMESPACES:
        raise TemplateError(f"{{{{ {text} }}}} must begin with 'item' or 'sample'")
    path: list[str | int] = [root[0]]
    end = root.end()
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None:
            raise TemplateError(
                f"{{{{ {text} }}}}: only look-ups such as item.question or item.messages[0] can "
                f"stand there, not {text[end:].strip()!r}"
            )
        path.append(_key(step))
        end = step.end()
    if root[0] == "sample" and (len(path) < 2 or path[1] not in SAMPLE_NAMES):
        raise TemplateError(f"{{{{ {text} }}}}: a sample has only {', '.join(SAMPLE_NAMES)}")
    return _Variable(text, tuple(path))


def _key(step: re.Match[str]) -> str | int:
    if step["index"] is not None:
        return int(step["index"])
    named = (step["name"], step["double"], step["single"])
    return next(name for name in named if name is not None)


def _value(variable: _Variable, values: Mapping[str, Any]) -> Any:
    here: Any = values
    for index, key in enumerate(variable.path):
        here = _step(here, key)
        if here is _MISSING:
            raise UnknownVariable(variable.text)
        if here is None and variable.path[: index + 1] == ("sample", "output_json"):
            raise UnknownVariable(variable.text, is_unparsed_sample=True)
    return here


def _step(here: Any, key: str | int) -> Any:
    if isinstance(key, str):
        return here.get(key, _MISSING) if isinstance(here, Mapping) else _MISSING
    if not isinstance(here, Sequence) or isinstance(here, str):
        return _MISSING
    return here[key] if -len(here) <= key < len(here) else _MISSING


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can spell half a surrogate pair, which no other program would take.
    return text.encode(errors="replace").decode()
