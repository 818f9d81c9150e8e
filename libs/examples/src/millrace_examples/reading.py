"""Reading a training file in a job, as the kind of example that its method learns from."""

import hashlib
from pathlib import Path
from typing import TypeVar

from millrace_examples import table
from millrace_examples.conversions import convert, converts
from millrace_examples.format import Format
from millrace_examples.formats import (
    FORMATS,
    alternatives,
    candidates_for,
    row_mistakes,
    unknown_format,
)
from millrace_examples.kinds import (
    Classified,
    Columns,
    Conversation,
    Example,
    Judged,
    Pair,
    Preference,
    Task,
    Text,
)
from millrace_examples.report import Problem
from millrace_examples.rows import ReadRow, Unreadable, container_of, rows_of

_HASHED_BYTES = 1024 * 1024
_WORDS: dict[type[Example], str] = {
    Conversation: "conversations",
    Preference: "preference pairs",
    Judged: "answers that were found good or bad",
    Task: "prompts for graders",
    Text: "plain text",
    Classified: "texts with labels",
    Pair: "pairs of texts",
    Columns: "rows of columns",
}
Wanted = TypeVar("Wanted", Conversation, Preference, Judged, Task, Text, Classified, Pair, Columns)


class ExamplesError(Exception):
    """A file that cannot be used; ``reason`` is UPPER_SNAKE, the text says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read(
    path: Path, expected_sha256: str, wanted: type[Wanted], purpose: str, method: str = ""
) -> list[Wanted]:
    """All examples of a file whose content is proven by its digest; blank lines are skipped.

    ``purpose`` names the file in messages ("training file"), ``method`` what reads it ("dpo").

    Raises:
        ExamplesError: FILE_MISSING, FILE_CHANGED when the digest differs, WRONG_FORMAT when the
            method learns from another kind, INVALID_EXAMPLE naming line and field, EMPTY_FILE.
    """
    _verify(path, expected_sha256, purpose)
    try:
        examples = _read(path, wanted, purpose, method)
    except Unreadable as error:
        message = f"the {purpose} {error}; correct it and upload again"
        raise ExamplesError("INVALID_EXAMPLE", message) from None
    if not examples:
        message = f"the {purpose} holds no examples; upload at least one"
        raise ExamplesError("EMPTY_FILE", message)
    return examples


def _read(path: Path, wanted: type[Wanted], purpose: str, method: str) -> list[Wanted]:
    chosen: Format | None = None
    examples: list[Wanted] = []
    for row in rows_of(path, container_of(path, wants_text=wanted is Text)):
        if row.problem:
            raise invalid(purpose, row.line, "", row.problem)
        chosen = chosen or _choose(row, wanted, purpose, method)
        for place, message in row_mistakes(chosen, row.value):
            raise invalid(purpose, row.line, place, message)
        examples += _converted(chosen.parse(row.line, row.value), wanted, purpose)
    return examples


def _choose(first: ReadRow, wanted: type[Example], purpose: str, method: str) -> Format:
    """The format that gives ``wanted``, of those that the first row may be in."""
    found = candidates_for(first.value, wanted)
    if found:
        return found[0]
    others = alternatives(first.value)
    if not others:
        raise invalid(purpose, first.line, "", unknown_format(first.value))
    shapes = " or ".join(f.shape for f in FORMATS if converts(f.kind, wanted))
    needs = f"method {method} needs" if method else "needed are"
    if wanted is Columns:
        needs = "a job with a prompt template (`prompt`) needs"
    message = (
        f"{needs} {_WORDS[wanted]}; the {purpose} holds {others[0].title}: "
        f"write each line as {shapes}"
    )
    if others[0] is table.FORMAT:
        message += ", or name a prompt template for the columns as the job's `prompt`"
    raise ExamplesError("WRONG_FORMAT", message)


def _converted(example: Example, wanted: type[Wanted], purpose: str) -> list[Wanted]:
    made = convert(example, wanted)
    if not made:
        message = f"cannot be read as one of {_WORDS[wanted]}"
        raise invalid(purpose, example.line, "", message)
    return made


def _verify(path: Path, expected_sha256: str, purpose: str) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_HASHED_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        message = f"the {purpose} is not at {path}; upload it again"
        raise ExamplesError("FILE_MISSING", message) from None
    found = f"sha256:{digest.hexdigest()}"
    if found != expected_sha256:
        message = f"the {purpose} is {found}, expected {expected_sha256}; upload it again"
        raise ExamplesError("FILE_CHANGED", message)


def invalid(purpose: str, line: int, place: str, message: str) -> ExamplesError:
    """INVALID_EXAMPLE, naming line and field."""
    problem = Problem(line, place, message)
    text = f"{purpose}, {problem}; correct the line and upload again"
    return ExamplesError("INVALID_EXAMPLE", text)
