"""What a row is known by: the sha256 of a form that does not depend on how it was written down.

    a text, or a row with a string in "text"   the text's UTF-8
    any other row                              its JSON as RFC 8785 has it (sorted keys, no spaces)

So a JSON line, the same line with other spaces, and the same row of a parquet file are one. What
users can compute without this module: ``printf %s "$TEXT" | sha256sum``.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from millrace_examples.rows import Container, Unreadable, container_of, rows_of

HASH_BYTES = 32
PREFIX = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_LARGEST_EXACT = 2**53
_MOST_DIGITS = 21  # of a number without an exponent (ECMA-262, Number::toString)


@dataclass(frozen=True)
class _Written:
    """A piece of JSON that is finished."""

    text: str


def row_hash(row: Mapping[str, Any] | str) -> bytes:
    """The 32 bytes that a row is known by."""
    text = row if isinstance(row, str) else row.get("text")
    if not isinstance(text, str):
        text = canonical(row)
    # Half a surrogate pair is no character; it still has one form.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def spelled(hash: bytes) -> str:
    """``sha256:`` and 64 hexadecimal digits."""
    return PREFIX + hash.hex()


def parsed(hash: str) -> bytes:
    """
    Raises:
        ValueError: it is not of the form that ``spelled`` gives.
    """
    if not _HASH.fullmatch(hash):
        raise ValueError(f"{hash!r} is not sha256: and 64 hexadecimal digits")
    return bytes.fromhex(hash.removeprefix(PREFIX))


def hashes_of(path: Path, filename: str) -> Iterator[bytes]:
    """Of every row of a file; of a plain text also that of the whole.

    Raises:
        Unreadable: naming the first line that is no row.
    """
    container = container_of(path, filename)
    if container is Container.TEXT:
        with path.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").digest()
    for row in rows_of(path, container):
        if row.problem:
            raise Unreadable(f"line {row.line}: {row.problem}")
        yield row_hash(row.value)


def canonical(value: Any) -> str:
    """JSON as RFC 8785 has it; what JSON has no form for is text. Nested however deep."""
    parts: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Written):
            parts.append(item.text)
        elif isinstance(item, Mapping):
            waiting += reversed(_members(item))
        elif isinstance(item, list | tuple):
            waiting += reversed(_elements(item))
        else:
            parts.append(_scalar(item))
    return "".join(parts)


def _members(value: Mapping[Any, Any]) -> list[Any]:
    named = {str(key): held for key, held in value.items()}
    pieces: list[Any] = [_Written("{")]
    for index, key in enumerate(sorted(named, key=_utf16)):
        comma = "," if index else ""
        pieces += [_Written(f"{comma}{_string(key)}:"), named[key]]
    return [*pieces, _Written("}")]


def _elements(value: list[Any] | tuple[Any, ...]) -> list[Any]:
    pieces: list[Any] = [_Written("[")]
    for index, held in enumerate(value):
        pieces += [_Written(","), held] if index else [held]
    return [*pieces, _Written("]")]


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    return _string(str(value))


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _utf16(key: str) -> bytes:
    """RFC 8785 sorts by UTF-16's units, which are not in the order of the characters."""
    return key.encode("utf-16-be", "surrogatepass")


def _number(value: int | float) -> str:
    """As ECMA-262 writes it: integers beyond 2^53 are the nearest doubles."""
    if isinstance(value, int) and abs(value) <= _LARGEST_EXACT:
        return str(value)
    try:
        number = float(value)
    except OverflowError:
        return str(value)
    if number == 0:
        return "0"
    if not math.isfinite(number):
        return repr(number)
    return _finite(number)


def _finite(number: float) -> str:
    """Number::toString of ECMA-262: ``k`` digits, the point after the ``n``-th of them."""
    _, found, exponent = Decimal(repr(abs(number))).as_tuple()
    assert isinstance(exponent, int), "of a finite number"
    written = "".join(map(str, found))
    digits = written.rstrip("0")
    k, n = len(digits), len(written) + exponent
    sign = "-" if number < 0 else ""
    if k <= n <= _MOST_DIGITS:
        return f"{sign}{digits}{'0' * (n - k)}"
    if 0 < n <= _MOST_DIGITS:
        return f"{sign}{digits[:n]}.{digits[n:]}"
    if -6 < n <= 0:
        return f"{sign}0.{'0' * -n}{digits}"
    fraction = f".{digits[1:]}" if k > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{'+' if n > 0 else '-'}{abs(n - 1)}"
