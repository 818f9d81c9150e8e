"""Watching a search for settings to its end: on standard error, as it is news and no answer."""

import time

import typer

from millrace_client import output
from millrace_client.api import Json, Millrace
from millrace_client.errors import NoGateway, RateLimited, ServerError
from millrace_client.serving_view import progress_line, trial_line

_POLL_SECONDS = 1.0
_LEFT = 130  # as a shell says of a program that Ctrl-C ended
_ENDED = ("succeeded", "failed", "cancelled")


def watch_tuning(client: Millrace, tuning: str) -> None:
    """Follow a search until it has succeeded. A gateway that is away is waited for.

    Raises:
        typer.Exit: 1: it failed or was cancelled; 130: the user left.
    """
    notes = output.error_console()
    try:
        ended = _follow(client, tuning)
    except KeyboardInterrupt:
        notes.print(
            f"\nno longer watching; {tuning} goes on.\n"
            f"watch it again: millrace tune-serving watch {tuning}\n"
            f"end it:         millrace tune-serving cancel {tuning}",
            markup=False,
        )
        raise typer.Exit(_LEFT) from None
    if ended["status"] != "succeeded":
        error = ended["error"] or {"message": "nothing is said of why"}
        notes.print(f"{tuning} {ended['status']}: {error['message']}", markup=False)
        raise typer.Exit(1)


def _follow(client: Millrace, tuning: str) -> Json:
    notes, told = output.error_console(), 0
    with notes.status("beginning") as status:
        while True:
            try:
                found = client.serving_tunings.get(tuning)
            except (NoGateway, ServerError, RateLimited) as error:
                status.update(f"waiting: {error}")
                time.sleep(_POLL_SECONDS)
                continue
            for trial in found["trials"][told:]:
                notes.print(trial_line(trial), markup=False)
            told = max(told, len(found["trials"]))
            status.update(progress_line(found))
            if found["status"] in _ENDED:
                return found
            time.sleep(_POLL_SECONDS)
