"""What every format says of itself; each module of a format ends with its ``Format``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from millrace_examples.kinds import Example
from millrace_examples.values import Mistake, Row

MINIMUM_EXAMPLES = 10  # OpenAI refuses a fine-tuning file with fewer
_NAMING = frozenset(("id", "metadata"))  # fields that name a row and teach nothing


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
        name: stable identifier, such as ``openai_chat``.
        title: what a file of it holds, for messages.
        shape: one row of it, shortened, for messages.
        kind: what a row means.
        fields: what a row may have.
        recognises: whether a row is meant to be of this format, right or wrong.
        mistakes: what is wrong with a row that is.
        parse: the meaning of a row without mistakes.
        is_strict: a field that is not in ``fields`` is a mistake; else it is reported as unused.
        takes_all: every further field has a meaning, and none is unused.
    """

    name: str
    title: str
    shape: str
    kind: type[Example]
    fields: frozenset[str]
    recognises: Callable[[Row], bool]
    mistakes: Callable[[Row], Iterator[Mistake]]
    parse: Callable[[int, Row], Example]
    is_strict: bool = False
    takes_all: bool = False
    minimum_examples: int = MINIMUM_EXAMPLES

    def unused_fields(self, row: Row) -> set[str]:
        """Fields that hold something which this format has no use for."""
        if self.takes_all:
            return set()
        unknown = set(row) - self.fields - _NAMING
        return {key for key in unknown if row[key] is not None}


def free_fields(row: Row, fields: frozenset[str]) -> Row:
    """What a row holds beside ``fields``: for graders."""
    return {key: value for key, value in row.items() if key not in fields}
