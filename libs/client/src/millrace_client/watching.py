"""Watching a piece of work until it ends: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable, Sequence

import typer

from millrace_client.errors import NoGateway, RateLimited, ServerError
from millrace_client.output import Json, console, state

_POLL_SECONDS = 1.0
_ENDED = ("succeeded", "failed", "cancelled", "paused")
_FAILED = ("failed", "reversed", "expired")


def watch(
    fetch: Callable[[], Json],
    describe: Callable[[Json], str],
    news: Callable[[], Iterable[str]] = tuple,
    ended: Iterable[str] = _ENDED,
) -> None:
    """Show a resource until its ``status`` is one of ``ended``; exit with 1 if that is failure.

    ``news`` gives lines that are worth keeping, each once. A gateway that is away is waited
    for: the work goes on without it.
    """
    out = console()
    last = ""
    with out.status("…") as spinner:
        while True:
            try:
                document, lines = fetch(), list(news())
            except (NoGateway, ServerError, RateLimited) as error:
                spinner.update(f"waiting: {error}")
                time.sleep(_POLL_SECONDS)
                continue
            for line in lines:
                out.print(line, markup=False)
            text = describe(document)
            spinner.update(text)
            if not out.is_terminal and text != last:
                out.print(text, markup=False)
            last = text
            if document["status"] in tuple(ended):
                break
            time.sleep(_POLL_SECONDS)
    _conclude(document)


def _conclude(document: Json) -> None:
    out = console()
    out.print(document["id"], state(document["status"]))
    for error in _errors(document):
        where = f"line {error['line']}: " if error.get("line") else ""
        out.print(f"{where}{error['code']}: {error['message']}", style="red", markup=False)
    if document["status"] in _FAILED:
        raise typer.Exit(1)


def _errors(document: Json) -> Sequence[Json]:
    """Why it ended as it did: a batch has as many reasons as lines that are wrong."""
    error = document.get("error")
    several = document.get("errors") or {}
    return [error] if error else several.get("data", [])


def metrics(document: Json) -> str:
    """Where a piece of work stands, with its newest measurements."""
    progress = document.get("progress")
    if not progress:
        return str(document["status"])
    total = f"/{progress['total']:,}" if progress["total"] else ""
    figures = "  ".join(f"{name} {value:.4g}" for name, value in progress["metrics"].items())
    return f"{document['status']}  {progress['phase']} {progress['completed']:,}{total}  {figures}"
