"""Reads one JSON object field by field; what is wrong is said with the field's path."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.graders import templates
from millrace_tuner.graders.templates import Template

MAXIMUM_TEXT_LENGTH = 4096
MAXIMUM_LIST_LENGTH = 256

_Word = TypeVar("_Word", bound=str)


class Fields:
    """One object of a request.

    Every method raises InvalidArgument, naming the field at fault. A field that was asked for is
    known; ``refuse_others`` refuses the rest.
    """

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, Mapping):
            raise InvalidArgument(f"{where}: must be an object", field=where)
        self.document = document
        self._where = where
        self._known: set[str] = set()

    def path(self, name: str) -> str:
        return f"{self._where}.{name}"

    def take(self, name: str) -> Any:
        """The value as it is; None when it is not there."""
        self._known.add(name)
        return self.document.get(name)

    def refuse_others(self) -> None:
        for name in self.document:
            if name not in self._known:
                raise self._wrong(name, "there is no such field")

    def object(self, name: str) -> "Fields":
        return Fields(self._required(name), self.path(name))

    def text(self, name: str, longest: int = MAXIMUM_TEXT_LENGTH) -> str:
        value = self._required(name)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, "must be a text that is not empty")
        if len(value) > longest:
            raise self._wrong(name, f"must have {longest} characters at most")
        return value

    def texts(self, name: str) -> Sequence[str]:
        """A list of texts, each once."""
        value = self._required(name)
        if not isinstance(value, list) or not 1 <= len(value) <= MAXIMUM_LIST_LENGTH:
            raise self._wrong(name, f"must be a list of 1 to {MAXIMUM_LIST_LENGTH} texts")
        for index, each in enumerate(value):
            if not isinstance(each, str) or not each.strip():
                raise self._wrong(f"{name}[{index}]", "must be a text that is not empty")
            if each in value[:index]:
                raise self._wrong(f"{name}[{index}]", f"{each!r} is there twice")
        return value

    def template(self, name: str) -> Template:
        """A text with ``{{ … }}``; it may be empty."""
        value = self._required(name)
        if not isinstance(value, str):
            raise self._wrong(name, "must be a text")
        try:
            return templates.parse(value)
        except templates.TemplateError as error:
            raise self._wrong(name, str(error)) from None

    def choice(self, name: str, words: Sequence[_Word]) -> _Word:
        value = self._required(name)
        for word in words:
            if value == word:
                return word
        raise self._wrong(name, f"must be one of {', '.join(words)}")

    def optional_choice(self, name: str, words: Sequence[_Word]) -> _Word | None:
        return None if self.take(name) is None else self.choice(name, words)

    def number(
        self, name: str, lowest: float = -math.inf, highest: float = math.inf
    ) -> float | None:
        """A finite number, or None."""
        value = self.take(name)
        if value is None:
            return None
        # bool is an int to Python, not to JSON.
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(name, "must be a number")
        if not lowest <= value <= highest:
            raise self._wrong(name, f"must be between {lowest:g} and {highest:g}")
        return float(value)

    def integer(self, name: str, lowest: int, highest: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not int or not lowest <= value <= highest:
            raise self._wrong(name, f"must be an integer between {lowest} and {highest}")
        return value

    def _required(self, name: str) -> Any:
        value = self.take(name)
        if value is None:
            raise self._wrong(name, "is required")
        return value

    def _wrong(self, name: str, why: str) -> InvalidArgument:
        where = self.path(name)
        return InvalidArgument(f"{where}: {why}", field=where)
