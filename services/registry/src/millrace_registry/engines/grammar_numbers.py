"""Numbers within bounds, and multiples of a step, as rules that spell their decimal digits.

A number has at most 15 significant digits and no bound that has more: so many keep their order
when a client reads them as doubles. Where there are bounds there is no exponent.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

from grammar_rules import Rules, either

NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
DOUBLE_DIGITS = 15
MAXIMUM_BOUND_DIGITS = 40
USUAL_DECIMALS = 6
MAXIMUM_STATES = 4_000

INTEGER = '"-"? [1-9] [0-9]{0,14} | "0"'
NUMBER = '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+\\-]? [0-9]{1,2})?'


@dataclass(frozen=True)
class Grid:
    """The numbers n / 10 ** ``decimals``, ``low`` <= n <= ``high``, n a multiple of ``step``."""

    low: int
    high: int
    decimals: int
    step: int


def number_rule(rules: Rules, schema: Mapping[str, Any], is_integer: bool, path: str) -> str:
    """The rule for a number that ``schema`` allows.

    Raises:
        ValueError: the bounds are no numbers, have too many digits, or leave nothing.
    """
    given = {key: _number(schema[key], key, path) for key in NUMERIC if key in schema}
    if not given:
        return rules.name(INTEGER if is_integer else NUMBER)
    if given.get("multipleOf", Decimal(1)) <= 0:
        raise ValueError(f"response_format: multipleOf in {path} must be more than 0")
    grid = _integers(given, path) if is_integer else _decimals(given, path)
    spelled = _Digits(rules, grid, path)
    positive = spelled.between(max(grid.low, 0), grid.high)
    negative = spelled.between(max(-grid.high, 1), -grid.low)
    bodies = [*positive, *([f'"-" {either(negative)}'] if negative else [])]
    if not bodies:
        raise ValueError(f"response_format: no number is within {' and '.join(given)} in {path}")
    return rules.name(either(bodies))


def _number(value: Any, key: str, path: str) -> Decimal:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = Decimal(repr(value))
        if number.is_finite() and abs(number.adjusted()) <= 400:
            return number
    raise ValueError(f"response_format: {key} in {path} must be a number")


def _integers(given: Mapping[str, Decimal], path: str) -> Grid:
    """An integer is a multiple of a / b, in lowest terms, when it is one of a."""
    step = Fraction(given.get("multipleOf", Decimal(1))).numerator
    low, high = _bounds(given, 0)
    largest = max(abs(bound) for bound in (low, high, 0) if bound is not None)
    if largest >= 10**MAXIMUM_BOUND_DIGITS:
        raise ValueError(f"response_format: a bound in {path} has too many digits")
    digits = max(DOUBLE_DIGITS, len(str(largest)) + 1)
    return _closed(low, high, 0, step, 10**digits - 1)


def _decimals(given: Mapping[str, Decimal], path: str) -> Grid:
    given = {key: value for key, value in given.items() if not _is_beyond(key, value)}
    multiple = given.get("multipleOf")
    bounds = [value for key, value in given.items() if key != "multipleOf"]
    before = max((len(str(int(abs(bound)))) for bound in bounds), default=1)
    decimals = max((_decimals_of(bound) for bound in bounds), default=0)
    if multiple is not None:
        decimals = _decimals_of(multiple)
    elif before + decimals <= DOUBLE_DIGITS:
        decimals = max(decimals, min(USUAL_DECIMALS, DOUBLE_DIGITS - before))
    if before + decimals > DOUBLE_DIGITS:
        raise ValueError(
            f"response_format: {' and '.join(given)} in {path} need more than "
            f"{DOUBLE_DIGITS} digits"
        )
    step = 1 if multiple is None else int(Fraction(multiple) * 10**decimals)
    low, high = _bounds(given, decimals)
    return _closed(low, high, decimals, step, 10**DOUBLE_DIGITS - 1)


def _is_beyond(key: str, value: Decimal) -> bool:
    """Whether a bound is further out than any number that is written."""
    most = 10**DOUBLE_DIGITS
    return value >= most if key.lower().endswith("maximum") else -value >= most


def _bounds(given: Mapping[str, Decimal], decimals: int) -> tuple[int | None, int | None]:
    """The least and the largest n of a grid; None where nothing bounds it."""
    scaled = {key: Fraction(value) * 10**decimals for key, value in given.items()}
    lows = [ceil(scaled["minimum"])] if "minimum" in scaled else []
    lows += [floor(scaled["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in scaled else []
    highs = [floor(scaled["maximum"])] if "maximum" in scaled else []
    highs += [ceil(scaled["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in scaled else []
    return max(lows, default=None), min(highs, default=None)


def _closed(low: int | None, high: int | None, decimals: int, step: int, most: int) -> Grid:
    return Grid(-most if low is None else low, most if high is None else high, decimals, step)


def _decimals_of(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    return max(0, -int(exponent))


class _Digits:
    """Rules that spell what is left of a number, one for each state that differs.

    A state is how many digits are left, the least and the largest that they may be (None: nothing
    bounds them), and what the number so far is beyond a multiple of the step.
    """

    def __init__(self, rules: Rules, grid: Grid, path: str) -> None:
        self._rules = rules
        self._decimals = grid.decimals
        self._step = grid.step
        self._path = path
        self._known: dict[tuple[int, int | None, int | None, int], str | None] = {}

    def between(self, low: int, high: int) -> list[str]:
        """Bodies for the n from ``low`` to ``high``, neither below 0: one a number of digits."""
        bodies: list[str] = []
        shortest = self._decimals + 1
        for length in range(max(len(str(low)), shortest), max(len(str(high)), shortest) + 1):
            first = low if length == shortest else max(low, 10 ** (length - 1))
            last = min(high, 10**length - 1)
            if first <= last and (body := self._first(length, first, last)):
                bodies.append(body)
        return bodies

    def _first(self, length: int, low: int, high: int) -> str | None:
        if self._step == 1 and not self._decimals and (low, high) == _all_of(length):
            return f"[1-9] [0-9]{{{length - 1}}}"
        return self._rest(length, low, high, 0)

    def _rest(self, left: int, low: int | None, high: int | None, over: int) -> str | None:
        """The rule for ``left`` more digits; None when no number can be made of them."""
        state = (left, low or None, None if high == 10**left - 1 else high, over)
        if state not in self._known:
            if len(self._known) >= MAXIMUM_STATES:
                raise ValueError(f"response_format: multipleOf in {self._path} is too large")
            body = self._body(*state)
            self._known[state] = None if body is None else self._rules.name(body)
        return self._known[state]

    def _body(self, left: int, low: int | None, high: int | None, over: int) -> str | None:
        if low is None and high is None and self._step == 1:
            return self._free(left)
        bodies = self._next_digits(left, low, high, over) if left else []
        point = left == self._decimals and left > 0
        if point and bodies:
            bodies = [f'"." {either(bodies)}']
        if left <= self._decimals and low is None and not over:
            bodies.append('""')  # the digits left are zeros
        return " | ".join(bodies) or None

    def _next_digits(self, left: int, low: int | None, high: int | None, over: int) -> list[str]:
        unit = 10 ** (left - 1)
        first, low_left = divmod(low or 0, unit)
        last, high_left = divmod(10 * unit - 1 if high is None else high, unit)
        after: dict[str, str] = {}
        for digit in range(first, last + 1):
            rest = self._rest(
                left - 1,
                low_left if digit == first else None,
                high_left if digit == last else None,
                (over + digit * unit) % self._step,
            )
            if rest:
                after[rest] = after.get(rest, "") + str(digit)
        return [f"[{digits}] {rest}" for rest, digits in after.items()]

    def _free(self, left: int) -> str:
        whole = left - self._decimals
        if whole >= 0:
            point = f'("." [0-9]{{1,{self._decimals}}})?' if self._decimals else '""'
            return f"[0-9]{{{whole}}} {point}" if whole else point
        return f"[0-9]{{0,{left}}}" if left else '""'


def _all_of(length: int) -> tuple[int, int]:
    return 10 ** (length - 1), 10**length - 1
