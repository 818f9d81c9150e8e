"""Grammars as xgrammar reads them: rules by name, and what several kinds of value share.

Characters stand in positive classes only, by their numbers: xgrammar's negative ones let through
bytes that are no UTF-8, and lone surrogates. So do its ranges from one length in UTF-8 to another.

Pure and free of imports from this package, because the file is copied beside ``model.py``
into the Triton repository.
https://github.com/mlc-ai/xgrammar/blob/main/docs/tutorials/ebnf_guided_generation.md
"""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

MAXIMUM_GRAMMAR_CHARACTERS = 500_000

Span = tuple[int, int]  # from one code point to another, both included

# What JSON lets stand in a string as it is. Surrogates are no characters.
RAW: tuple[Span, ...] = (
    (0x20, 0x21),
    (0x23, 0x5B),
    (0x5D, 0xD7FF),
    (0xE000, 0x10FFFF),
)
# The characters between two of these begin and go on alike in UTF-8.
UTF8_BORDERS = (0, 0x80, 0x800, 0x1000, 0xD000, 0xE000, 0x10000, 0x40000, 0x100000, 0x110000)
PLAIN = {'"': '\\"', "\\": "\\\\"}
# One space at most, so that no answer is filled with them.
SEPARATOR = '"," " "?'
COLON = '":" " "?'


class Rules:
    """The rules of one grammar. Rules of the same body are one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lines: list[str] = []
        self._count = 0
        self._characters = 0

    def name(self, body: str) -> str:
        """The name of the rule that is ``body``."""
        if body not in self._names:
            self._names[body] = self.reserve()
            self.define(self._names[body], body)
        return self._names[body]

    def reserve(self) -> str:
        """A name whose rule is defined later."""
        self._count += 1
        return f"r{self._count}"

    def define(self, name: str, body: str) -> None:
        """Raises ValueError when the grammar becomes too large."""
        line = f"{name} ::= {body}\n"
        self._characters += len(line)
        if self._characters > MAXIMUM_GRAMMAR_CHARACTERS:
            raise ValueError(
                "response_format: schema makes a grammar of more than "
                f"{MAXIMUM_GRAMMAR_CHARACTERS} characters"
            )
        self._lines.append(line)

    def text(self, root: str) -> str:
        return f"root ::= {root}\n{''.join(self._lines)}"


def quote(text: str) -> str:
    """Literals of the grammar, one after the other.

    A number has one of its own: xgrammar reads digits that follow as if they were of it.
    """
    runs = groupby(text, lambda character: " " <= character <= "~")
    literals = [
        "".join(PLAIN.get(one, one) if plain else _numbered(ord(one)) for one in run)
        for plain, run in runs
    ]
    return " ".join(f'"{literal}"' for literal in literals) or '""'


def one_of(spans: Iterable[Span]) -> str:
    """A class of characters."""
    parts = [
        (max(low, border), min(high, beyond - 1))
        for low, high in spans
        for border, beyond in pairwise(UTF8_BORDERS)
        if low < beyond and border <= high
    ]
    return "[" + "".join(_range(*part) for part in parts) + "]"


def either(bodies: Sequence[str]) -> str:
    """Alternatives, in parentheses where there are several."""
    return bodies[0] if len(bodies) == 1 else f"({' | '.join(bodies)})"


def without(spans: Iterable[Span], removed: Iterable[Span]) -> list[Span]:
    """The characters of ``spans`` that are not in ``removed``."""
    left = list(spans)
    for low, high in removed:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return sorted(set(left))


def times(body: str, least: int, most: int | None) -> str:
    """``body`` so many times; ``most`` is None for any number."""
    if most == 0:
        return '""'
    if (least, most) == (1, 1):
        return body
    return f"({body}){{{least},{'' if most is None else most}}}"


def _range(low: int, high: int) -> str:
    return _numbered(low) if low == high else f"{_numbered(low)}-{_numbered(high)}"


def _numbered(code: int) -> str:
    return f"\\U{code:08x}"
