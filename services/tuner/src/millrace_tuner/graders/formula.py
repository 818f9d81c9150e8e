"""The formula of a multi grader: arithmetic over names, parsed by ourselves, never ``eval``.

    sum     = product {("+" | "-") product}
    product = signed {("*" | "/") signed}
    signed  = ("+" | "-") signed | power
    power   = atom ["^" signed]
    atom    = number | name | function "(" sum {"," sum} ")" | "(" sum ")"

``^`` binds tighter than a sign on its left and groups to the right: ``-2^2`` is -4, ``2^3^2`` is
512. All values are floats.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

MAXIMUM_LENGTH = 2000
MAXIMUM_DEPTH = 50

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>[-+*/^(),]))"
)
_FUNCTIONS: Mapping[str, tuple[Callable[..., float], int, int | None]] = {
    "min": (min, 1, None),
    "max": (max, 1, None),
    "abs": (abs, 1, 1),
    "floor": (lambda value: float(math.floor(value)), 1, 1),
    "ceil": (lambda value: float(math.ceil(value)), 1, 1),
    "exp": (math.exp, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "log": (math.log, 1, 1),
}
FUNCTIONS = tuple(_FUNCTIONS)

_Expression: TypeAlias = Callable[[Mapping[str, float]], float]


class FormulaError(ValueError):
    """The formula cannot be read; says where."""


class CalculationError(ArithmeticError):
    """The formula has no finite value for these rewards."""


@dataclass(frozen=True)
class Formula:
    """A formula that was read.

    Attributes:
        names: the variables in it.
    """

    text: str
    names: frozenset[str]
    _compute: _Expression

    def value(self, rewards: Mapping[str, float]) -> float:
        """The value for these rewards; each of ``names`` must be among them.

        Raises:
            CalculationError: a division by zero, a root or logarithm of what has none, or a
                number that is too large.
        """
        try:
            result = self._compute(rewards)
        except (ArithmeticError, ValueError) as error:
            raise CalculationError(f"{self.text!r} cannot be computed: {error}") from None
        if not math.isfinite(result):
            raise CalculationError(f"{self.text!r} is {result}")
        return result


def parse(text: str) -> Formula:
    """Read a formula.

    Raises:
        FormulaError
    """
    if len(text) > MAXIMUM_LENGTH:
        raise FormulaError(f"is longer than {MAXIMUM_LENGTH} characters")
    reader = _Reader(_tokens(text))
    compute = reader.sum(0)
    if reader.sign:
        raise FormulaError(f"{reader.here} was not expected")
    return Formula(text, frozenset(reader.names), compute)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place = 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            rest = text[place:].lstrip()
            raise FormulaError(f"{rest[:1]!r} at character {len(text) - len(rest) + 1}")
        start = match.start(match.lastgroup) + 1
        found.append(_Token(match.lastgroup, match[match.lastgroup], start))
        place = match.end()
    return found


class _Reader:
    """Reads tokens from left to right; ``depth`` bounds how deep expressions nest."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self.names: set[str] = set()

    @property
    def sign(self) -> str:
        """The next token's text; empty at the end."""
        return self._tokens[self._index].text if self._index < len(self._tokens) else ""

    @property
    def here(self) -> str:
        if self._index >= len(self._tokens):
            return "the end"
        token = self._tokens[self._index]
        return f"{token.text!r} at character {token.place}"

    def sum(self, depth: int) -> _Expression:
        value = self._product(depth)
        while self.sign in ("+", "-"):
            join = _add if self._take().text == "+" else _subtract
            value = join(value, self._product(depth))
        return value

    def _product(self, depth: int) -> _Expression:
        value = self._signed(depth)
        while self.sign in ("*", "/"):
            join = _multiply if self._take().text == "*" else _divide
            value = join(value, self._signed(depth))
        return value

    def _signed(self, depth: int) -> _Expression:
        if depth > MAXIMUM_DEPTH:
            raise FormulaError(f"nests deeper than {MAXIMUM_DEPTH}")
        if self.sign not in ("+", "-"):
            return self._power(depth)
        is_negative = self._take().text == "-"
        value = self._signed(depth + 1)
        return _negate(value) if is_negative else value

    def _power(self, depth: int) -> _Expression:
        base = self._atom(depth)
        if self.sign != "^":
            return base
        self._take()
        return _raise(base, self._signed(depth + 1))

    def _atom(self, depth: int) -> _Expression:
        if self._index >= len(self._tokens):
            raise FormulaError("ends where a value was expected")
        where = self.here
        token = self._take()
        if token.kind == "number":
            return _constant(float(token.text))
        if token.kind == "name":
            return self._call(token, depth) if self.sign == "(" else self._variable(token)
        if token.text != "(":
            raise FormulaError(f"{where} stands where a value was expected")
        value = self.sum(depth + 1)
        self._expect(")")
        return value

    def _variable(self, token: _Token) -> _Expression:
        if token.text in _FUNCTIONS:
            raise FormulaError(f"the function {token.text} needs its arguments in parentheses")
        self.names.add(token.text)
        return lambda rewards: rewards[token.text]

    def _call(self, token: _Token, depth: int) -> _Expression:
        if token.text not in _FUNCTIONS:
            raise FormulaError(f"there is no function {token.text}; {', '.join(FUNCTIONS)} are")
        function, least, most = _FUNCTIONS[token.text]
        self._expect("(")
        arguments = [self.sum(depth + 1)]
        while self.sign == ",":
            self._take()
            arguments.append(self.sum(depth + 1))
        self._expect(")")
        if len(arguments) < least or (most is not None and len(arguments) > most):
            raise FormulaError(f"{token.text} takes {least} argument, not {len(arguments)}")
        return lambda rewards: function(*[argument(rewards) for argument in arguments])

    def _take(self) -> _Token:
        token = self._tokens[self._index]
        self._index += 1
        return token

    def _expect(self, sign: str) -> None:
        if self.sign != sign:
            raise FormulaError(f"{sign!r} was expected, not {self.here}")
        self._take()


def _constant(number: float) -> _Expression:
    return lambda _rewards: number


def _negate(value: _Expression) -> _Expression:
    return lambda rewards: -value(rewards)


def _add(left: _Expression, right: _Expression) -> _Expression:
    return lambda rewards: left(rewards) + right(rewards)


def _subtract(left: _Expression, right: _Expression) -> _Expression:
    return lambda rewards: left(rewards) - right(rewards)


def _multiply(left: _Expression, right: _Expression) -> _Expression:
    return lambda rewards: left(rewards) * right(rewards)


def _divide(left: _Expression, right: _Expression) -> _Expression:
    return lambda rewards: left(rewards) / right(rewards)


def _raise(base: _Expression, exponent: _Expression) -> _Expression:
    # math.pow refuses what would be complex, and what is too large, where ** answers.
    return lambda rewards: math.pow(base(rewards), exponent(rewards))
