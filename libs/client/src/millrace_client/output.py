"""What commands print: tables and records for people, JSON for programs."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from millrace_client import text

Json = dict[str, Any]
Columns = Mapping[str, Callable[[Json], object]]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")]

_PIPE_WIDTH = 240
_STATE_STYLES = {
    "succeeded": "green",
    "settled": "green",
    "serving": "green",
    "ready": "green",
    "completed": "green",
    "delivered": "green",
    "running": "cyan",
    "canary": "cyan",
    "loading": "cyan",
    "rolling_out": "cyan",
    "replaying": "cyan",
    "in_progress": "cyan",
    "finalizing": "cyan",
    "failed": "red",
    "reversed": "red",
    "quarantined": "red",
    "rejected": "red",
    "refused": "red",
    "expired": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "validating": "yellow",
    "paused": "yellow",
    "pending": "yellow",
    "waiting": "yellow",
    "starting": "yellow",
}


def console() -> Console:
    """Standard output, as it is now (tests replace it); in a pipe, lines are not cut."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(soft_wrap=True, highlight=False, width=width)


def error_console() -> Console:
    """Standard error, as it is now: for people, never for programs."""
    return Console(stderr=True, highlight=False)


def print_json(document: object) -> None:
    """JSON with a newline, and nothing else."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def show_list(items: Sequence[Json], columns: Columns, *, as_json: bool, empty: str) -> None:
    """Items as a table; ``empty`` is said when there are none."""
    if as_json:
        print_json(items)
    elif not items:
        console().print(empty)
    else:
        console().print(table(items, columns))


def table(items: Sequence[Json], columns: Columns) -> Table:
    """A table with one row an item; a missing value is a dash."""
    result = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns):
        # The first column says which it is: half an id is of no use.
        result.add_column(name, no_wrap=index == 0, overflow="fold" if index == 0 else "ellipsis")
    for item in items:
        result.add_row(*(_cell(value(item)) for value in columns.values()))
    return result


def show(document: Json, *, as_json: bool) -> None:
    """One resource, a field a line."""
    if as_json:
        print_json(document)
        return
    grid = Table.grid(padding=(0, 2))
    for key, value in _flat(document):
        grid.add_row(Text(key, style="dim"), state(value) if key == "status" else _cell(value))
    console().print(grid)


def state(word: object) -> Text:
    """A state's name, in its colour."""
    return Text(str(word or "-"), style=_STATE_STYLES.get(str(word), ""))


def created(item: Json) -> str:
    """How long ago an item was made."""
    return text.ago(item.get("created_at") or item.get("created"))


def _flat(document: Json, prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in document.items():
        if key == "object" or value in (None, "", [], {}):
            continue
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif prefix == "" and key.endswith("_at") and isinstance(value, int):
            rows.append((key, f"{text.clock(value)} ({text.ago(value)})"))
        elif isinstance(value, list):
            rows += [(f"{prefix}{key}", json.dumps(v) if isinstance(v, dict) else v) for v in value]
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("-")
    # As text, not as markup: what users named things is shown as they wrote it.
    return Text(text.number(value) if isinstance(value, float) else str(value))
