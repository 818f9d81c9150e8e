"""Reading rows of columns as the examples that a prompt template makes of them.

Each row gives the template's variables. What is learnt stands in further columns: the answer in
``completion`` (or the first of completion, output and answer that is no variable), a compared
pair in ``chosen`` and ``rejected``. Nothing of the prompt is learnt, its few-shot examples
included; graders read every column as ``item.…``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from millrace_examples.kinds import Columns, Conversation, Message, Messages, Preference, Task
from millrace_examples.prompt_template import Template, VariableError, render
from millrace_examples.prompts import said_by
from millrace_examples.reading import ExamplesError, invalid, read
from millrace_examples.table import text_of

COMPLETIONS = ("completion", "output", "answer")
Made = TypeVar("Made", Conversation, Preference, Task)


@dataclass(frozen=True)
class Prompting:
    """A template, and the column whose text is the answer; empty: found by its name."""

    template: Template
    completion: str = ""


def read_prompted(
    path: Path,
    expected_sha256: str,
    wanted: type[Made],
    purpose: str,
    method: str,
    prompting: Prompting,
) -> list[Made]:
    """All rows of a file of columns, as examples; blank lines are skipped.

    Raises:
        ExamplesError: as ``reading.read``; INVALID_EXAMPLE also where a column is missing.
    """
    make = _MAKERS[wanted]
    rows = read(path, expected_sha256, Columns, purpose, method)
    return [make(_Row(prompting, row, purpose)) for row in rows]


class _Row:
    """One row, and what its columns are to the template."""

    def __init__(self, prompting: Prompting, row: Columns, purpose: str) -> None:
        self._prompting = prompting
        self._purpose = purpose
        self.line = row.line
        self.values: dict[str, Any] = row.values

    @property
    def tools(self) -> tuple[dict[str, Any], ...]:
        return self._prompting.template.tools

    def prompt(self) -> Messages:
        template = self._prompting.template
        columns = {n: text_of(self.values[n]) for n in template.names if n in self.values}
        try:
            return render(template, columns)
        except VariableError as error:
            message = "is a variable of the prompt template without a default: add the column"
            raise self.invalid(error.name, message) from None

    def answer(self, column: str) -> Message:
        text = text_of(self.values.get(column, ""))
        if not text:
            raise self.invalid(column, "must hold the answer that is learnt")
        return said_by("assistant", text)

    def completion(self) -> str:
        """The column of the answer."""
        taken = self._prompting.template.names
        named = [n for n in COMPLETIONS if n in self.values and n not in taken]
        found = self._prompting.completion or next(iter(named), "")
        if not found:
            columns = ", ".join(self.values)
            message = (
                f"no column is called {', '.join(COMPLETIONS)}; name the one that holds the "
                f"answer as the job's `prompt.completion`: there is {columns}"
            )
            raise self.invalid("", message)
        return found

    def invalid(self, place: str, message: str) -> ExamplesError:
        return invalid(self._purpose, self.line, place, message)


def _conversation(row: _Row) -> Conversation:
    given = tuple(
        {**message, "weight": 0} if message["role"] == "assistant" else message
        for message in row.prompt()
    )
    return Conversation(row.line, (*given, row.answer(row.completion())), row.tools)


def _preference(row: _Row) -> Preference:
    preferred, rejected = row.answer("chosen"), row.answer("rejected")
    if preferred == rejected:
        raise row.invalid("rejected", "is the same as chosen: nothing would be learnt")
    return Preference(row.line, row.prompt(), row.tools, (preferred,), (rejected,))


def _task(row: _Row) -> Task:
    return Task(row.line, row.prompt(), row.tools, row.values)


_MAKERS: dict[type, Callable[[_Row], Any]] = {
    Conversation: _conversation,
    Preference: _preference,
    Task: _task,
}


def makes(wanted: type) -> bool:
    """Whether rows of columns can be made into examples of this kind."""
    return wanted in _MAKERS
