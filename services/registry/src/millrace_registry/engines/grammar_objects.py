"""Objects of JSON as rules of a grammar: which properties, in which order, how many.

Copied beside ``model.py`` into the Triton repository, so free of imports from this package.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grammar_rules import COLON, RAW, SEPARATOR, Rules, either, one_of, quote, times, without
from grammar_strings import string_rule

MAXIMUM_STATES = 20_000
# A weak model would write a key that nobody has named to the end of its tokens.
LONGEST_KEY = 64
# A key that begins like a name as long as this is left out with it.
LONGEST_PREFIX = 64


@dataclass(frozen=True)
class Counts:
    """How many properties there may be; ``most`` is None for any number."""

    least: int
    most: int | None

    def capped(self, number: int) -> int:
        """What of a number matters: none, some, enough, too many."""
        return number if self.most is not None else min(number, max(self.least, 1))


def object_rule(
    rules: Rules, schema: Mapping[str, Any], values: Mapping[str, str], other: str, path: str
) -> str:
    """An object whose properties have the rules ``values``, others the rule ``other`` or "".

    Raises:
        ValueError: the counts and the properties leave nothing, or are too many.
    """
    counts = _counts(schema, path)
    required = schema.get("required", [])
    reach = min(len(values), counts.capped(len(values)))
    if len(values) * reach > MAXIMUM_STATES:
        raise ValueError(f"response_format: {path} has too many properties to count them")
    pair = f"{_other_key(rules, values)} {COLON} {other}" if other else ""
    tails = {number: _others(rules, pair, counts, number) for number in range(reach + 1)}
    for at, (name, value) in reversed(list(enumerate(values.items()))):
        property_ = f"{quote(_spelled(name))} {COLON} {value}"
        tails = {
            number: _tail(rules, property_, name in required, tails, counts, number)
            for number in range(min(at, reach) + 1)
        }
    if tails[0] is None:
        raise ValueError(f"response_format: no object has minProperties to maxProperties in {path}")
    return rules.name(f'"{{" {tails[0]} "}}"')


def _tail(
    rules: Rules,
    property_: str,
    is_required: bool,
    tails: Mapping[int, str | None],
    counts: Counts,
    number: int,
) -> str | None:
    """What may come after ``number`` properties: this one and more, or more without it."""
    after = tails.get(counts.capped(number + 1))
    bodies = [] if after is None else [f"{SEPARATOR + ' ' if number else ''}{property_} {after}"]
    if not is_required and (without_it := tails[number]):
        bodies.append(without_it)
    return rules.name(either(bodies)) if bodies else None


def _others(rules: Rules, pair: str, counts: Counts, number: int) -> str | None:
    """The properties that are not named, after ``number`` that are.

    The same one may be written twice, so one is all that can be promised.
    """
    missing = max(0, counts.least - number)
    left = None if counts.most is None else counts.most - number
    if missing > (1 if pair else 0) or (left is not None and left < missing):
        return None
    if not pair or left == 0:
        return '""'
    more = f"{SEPARATOR} {pair}"
    if number:
        return rules.name(times(more, missing, left))
    some = f"{pair} {times(more, 0, None if left is None else left - 1)}"
    return rules.name(some if missing else f"({some})?")


def _counts(schema: Mapping[str, Any], path: str) -> Counts:
    given = {key: schema[key] for key in ("minProperties", "maxProperties") if key in schema}
    for key, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"response_format: {key} in {path} must be an integer, 0 or more")
    return Counts(given.get("minProperties", 0), given.get("maxProperties"))


def _other_key(rules: Rules, names: Iterable[str]) -> str:
    """A key that is none of ``names``. Without escapes, so none is written otherwise."""
    if not names:
        return string_rule(rules, 0, LONGEST_KEY)
    end = rules.name(f'{one_of(RAW)}{{0,{LONGEST_KEY}}} "\\""')
    return f'"\\"" {_differing(rules, sorted(set(names)), 0, end)}'


def _differing(rules: Rules, names: list[str], at: int, end: str) -> str:
    """The rest of a key of which ``at`` characters are those of ``names``."""
    begun: dict[str, list[str]] = {}
    for name in names:
        if len(name) > at and any(low <= ord(name[at]) <= high for low, high in RAW):
            begun.setdefault(name[at], []).append(name)
    taken = [(ord(character), ord(character)) for character in begun]
    bodies = [f"{one_of(without(RAW, taken))} {end}"]
    if all(len(name) > at for name in names):
        bodies.append('"\\""')
    if at < LONGEST_PREFIX:
        bodies += [
            f"{quote(character)} {_differing(rules, longer, at + 1, end)}"
            for character, longer in begun.items()
        ]
    return rules.name(either(bodies))


def _spelled(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(name)
    return json.dumps(name, ensure_ascii=False)
