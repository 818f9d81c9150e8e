"""Rows of columns, for a prompt template: ``{"question": …, "answer": …}``.

What a column means is said by the template, so any flat object of two columns or more may be
one. It is taken so only where no other format fits.
"""

import json
from collections.abc import Iterator
from typing import Any

from millrace_examples.format import Format
from millrace_examples.kinds import Columns
from millrace_examples.values import Mistake, Row, kind_of, place_of

_FEWEST_COLUMNS = 2  # a question and its answer


def text_of(value: Any) -> str:
    """A cell as it stands in a prompt: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _is_flat(value: object) -> bool:
    return not isinstance(value, dict | list)


def _recognises(row: Row) -> bool:
    filled = [value for value in row.values() if value is not None]
    return len(filled) >= _FEWEST_COLUMNS and all(map(_is_flat, filled))


def _mistakes(row: Row) -> Iterator[Mistake]:
    for key, value in row.items():
        if not _is_flat(value):
            yield place_of("", key), f"must be a string or a number, not {kind_of(value)}"
    if all(value is None for value in row.values()):
        yield "", "has no columns"


def _parse(line: int, row: Row) -> Columns:
    return Columns(line, {key: value for key, value in row.items() if value is not None})


FORMAT = Format(
    name="table",
    title="rows of columns",
    shape='{"question": …, "answer": …} for a job with a prompt template (`prompt`)',
    kind=Columns,
    fields=frozenset(),
    recognises=_recognises,
    mistakes=_mistakes,
    parse=_parse,
    takes_all=True,
)
