"""The objects of one JSON array, as data sets in a single .json file are kept.

Objects are decoded one by one, so memory is bounded by the largest that is allowed.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

_READ_BYTES = 256 * 1024
_BETWEEN = " \t\r\n"


class BrokenArray(Exception):
    """The text is no JSON array of values from ``line`` on; says why."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def no_constant(name: str) -> NoReturn:
    """For ``parse_constant``: NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is no number of JSON")


def array_values(stream: BinaryIO, maximum_characters: int) -> Iterator[tuple[int, Any]]:
    """Each value of the array with the line that it begins at, from 1.

    Raises:
        BrokenArray
    """
    text = _Window(stream)
    decoder = json.JSONDecoder(parse_constant=no_constant)
    text.expect("[")
    if text.next() == "]":
        return
    while True:
        text.next()
        yield text.line, text.value(decoder, maximum_characters)
        if text.next() == "]":
            break
        text.expect(",")
    text.expect("]")
    if text.next():
        raise BrokenArray(text.line, "follows the end of the array")


class _Window:
    """The part of the text that is being decoded; what lies before it is forgotten."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def next(self) -> str:
        """The next character that is not blank; empty at the end of the text."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BETWEEN:
                self.line += self._text[self._at] == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def expect(self, character: str) -> None:
        """Go past ``character``, which must be next.

        Raises:
            BrokenArray
        """
        found = self.next()
        if found != character:
            shown = json.dumps(found) if found else "the end of the file"
            raise BrokenArray(self.line, f'is not JSON: "{character}" should stand before {shown}')
        self._at += 1

    def value(self, decoder: json.JSONDecoder, maximum_characters: int) -> Any:
        """Decode the value that begins here, reading on as far as it reaches.

        Raises:
            BrokenArray
        """
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > maximum_characters:
                    problem = f"is longer than {maximum_characters} characters, or is not JSON"
                    raise BrokenArray(self.line, problem) from None
                if not self._read():
                    said = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise BrokenArray(self.line, f"is not JSON: {said}") from None
                continue
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _read(self) -> bool:
        """Read on; say whether there was more."""
        if self._ended:
            return False
        chunk = self._stream.read(_READ_BYTES)
        self._ended = not chunk
        try:
            added = self._decoder.decode(chunk, final=self._ended)
        except UnicodeDecodeError:
            raise BrokenArray(self.line, "or one after it is not UTF-8") from None
        self._text = self._text[self._at :] + added
        self._at = 0
        return not self._ended
