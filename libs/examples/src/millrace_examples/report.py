"""Checking a whole training file, row by row, and saying what it holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from millrace_examples.format import MINIMUM_EXAMPLES, Format
from millrace_examples.formats import alternatives, row_mistakes, unknown_format
from millrace_examples.rows import Container, ReadRow, Unreadable, container_of, rows_of
from millrace_examples.sizes import Size, size_of

MAXIMUM_PROBLEMS = 20
_MAXIMUM_UNUSED = 20


@dataclass(frozen=True)
class Problem:
    """One mistake. ``line`` counts from 1 and is None when the file as a whole is at fault;
    ``field`` is a path such as ``messages[1].role``, empty when the line as a whole is."""

    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        place = "file" if self.line is None else f"line {self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


@dataclass(frozen=True)
class Report:
    """What a file holds, and its first ``MAXIMUM_PROBLEMS`` mistakes.

    Attributes:
        format: the format's name; empty when the file has none that is known.
        kind: what a row means: ``conversation``, ``preference``, ….
        estimated_tokens: see ``sizes``; of ``longest_line`` alone in ``longest_tokens``.
        unused_fields: what rows hold that the format has no use for, sorted.
    """

    format: str = ""
    kind: str = ""
    examples: int = 0
    messages: int = 0
    characters: int = 0
    estimated_tokens: int = 0
    longest_line: int = 0
    longest_tokens: int = 0
    unused_fields: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def is_valid(self) -> bool:
        return not self.problems


class _Tally:
    """The sums of a file in one format, while its rows go by."""

    def __init__(self, chosen: Format) -> None:
        self.format = chosen
        self.examples = 0
        self.problems: list[Problem] = []
        self._sizes = Size(0, 0, 0)
        self._longest = (0, 0)
        self._unused: set[str] = set()

    def add(self, row: ReadRow) -> None:
        self.examples += 1
        mistakes = [("", row.problem)] if row.problem else row_mistakes(self.format, row.value)
        if mistakes:
            self.problems += [Problem(row.line, place, message) for place, message in mistakes]
            return
        if len(self._unused) < _MAXIMUM_UNUSED:
            self._unused |= self.format.unused_fields(row.value)
        size, sums = size_of(self.format.parse(row.line, row.value)), self._sizes
        self._longest = max(self._longest, (size.tokens, -row.line))
        self._sizes = Size(
            sums.messages + size.messages,
            sums.characters + size.characters,
            sums.tokens + size.tokens,
        )

    def end(self) -> None:
        """All rows were seen."""
        if self.examples < self.format.minimum_examples:
            self.problems.append(_too_few(self.examples, self.format.minimum_examples))

    def report(self) -> Report:
        return Report(
            format=self.format.name,
            kind=self.format.kind.__name__.lower(),
            examples=self.examples,
            messages=self._sizes.messages,
            characters=self._sizes.characters,
            estimated_tokens=self._sizes.tokens,
            longest_line=-self._longest[1],
            longest_tokens=self._longest[0],
            unused_fields=tuple(sorted(name[:64] for name in self._unused)[:_MAXIMUM_UNUSED]),
            problems=tuple(self.problems[:MAXIMUM_PROBLEMS]),
        )


def check(path: Path, filename: str = "") -> Report:
    """Check the file at ``path``; its first row decides on the format of all.

    ``filename`` is what its user called it: with .txt or .md at its end the file may be plain
    text (``rows.container_of``).
    Blank lines are skipped. Reading stops at ``MAXIMUM_PROBLEMS`` mistakes.
    """
    container = container_of(path, filename)
    try:
        first = next((row for row in rows_of(path, container) if not row.problem), None)
        if first is None:
            return _without_rows(path, container)
        return _check_alternatives(path, container, first)
    except Unreadable as error:
        return Report(problems=(Problem(None, "", str(error)),))


def _check_alternatives(path: Path, container: Container, first: ReadRow) -> Report:
    formats = alternatives(first.value)
    if not formats:
        return Report(problems=(Problem(first.line, "", unknown_format(first.value)),))
    reports: Iterator[Report] = (_check_in(chosen, path, container) for chosen in formats)
    found = next(reports)
    return found if found.is_valid else next((r for r in reports if r.is_valid), found)


def _check_in(chosen: Format, path: Path, container: Container) -> Report:
    tally = _Tally(chosen)
    for row in rows_of(path, container):
        tally.add(row)
        if len(tally.problems) >= MAXIMUM_PROBLEMS:
            return tally.report()
    tally.end()
    return tally.report()


def _without_rows(path: Path, container: Container) -> Report:
    """Of a file in which no line is an object."""
    problems: list[Problem] = []
    for row in rows_of(path, container):
        problems.append(Problem(row.line, "", row.problem))
        if len(problems) == MAXIMUM_PROBLEMS:
            break
    return Report(problems=tuple(problems) or (_too_few(0, MINIMUM_EXAMPLES),))


def _too_few(examples: int, minimum: int) -> Problem:
    return Problem(None, "", f"has {examples} examples; fine-tuning needs at least {minimum}")
