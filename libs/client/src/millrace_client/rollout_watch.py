"""Watching a rollout to its end: live on a terminal, lines in a pipe, JSON for programs."""

import time
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from millrace_client import output, rollout_view
from millrace_client.api import Json, Millrace
from millrace_client.errors import NoGateway, RateLimited, ServerError
from millrace_client.tuning_watch import print_json_line

_POLL_SECONDS = 0.5
_REDRAWN_PER_SECOND = 4
_LEFT = 130  # as a shell says of a program that Ctrl-C ended
_KEPT = 64

Show = Callable[[Json], None]
Waits = Callable[[str], None]


def newest(client: Millrace, model: str) -> str:
    """The rollout of a model that is under way, else its newest.

    Raises:
        typer.Exit: the model has none.
    """
    found = client.rollouts.list(20, model=model)
    if not found:
        output.error_console().print(f"{model} has no rollouts yet", markup=False)
        raise typer.Exit(1)
    under_way = (one for one in found if one["status"] not in (*rollout_view.ENDED, "pending"))
    return str(next(under_way, found[0])["id"])


def watch_rollout(client: Millrace, rollout: str, *, as_json: bool) -> None:
    """Follow a rollout to its end. A gateway that is away is waited for.

    Raises:
        typer.Exit: 1: it was reversed; 130: the user left.
    """
    out = output.console()
    try:
        if as_json:
            ended = _follow(client, rollout, print_json_line, lambda why: None)
        elif not out.is_terminal:
            ended = _follow(client, rollout, *_lines(out))
        else:
            ended = _draw(client, rollout)
    except KeyboardInterrupt:
        notes = output.error_console()
        notes.print(
            f"\nno longer watching; {rollout} goes on.\n"
            f"watch it again: millrace rollouts watch {rollout}\n"
            f"go back:        millrace rollouts reverse {rollout}",
            markup=False,
        )
        raise typer.Exit(_LEFT) from None
    if not as_json:
        out.print(ended["id"], output.state(ended["status"]))
    if ended["status"] == "reversed":
        raise typer.Exit(1)


def _follow(client: Millrace, rollout: str, show: Show, waits: Waits) -> Json:
    """Show a rollout at each change; return how it ended."""
    for found in _updates(client, rollout):
        if isinstance(found, str):
            waits(found)
            continue
        show(found)
        if found["status"] in rollout_view.ENDED:
            return found
    raise AssertionError("updates do not end by themselves")


def _updates(client: Millrace, rollout: str) -> Iterator[Json | str]:
    """The rollout at each change, or why it cannot be asked for now."""
    known: Json | str = {}
    while True:
        try:
            found: Json | str = client.rollouts.get(rollout)
        except (NoGateway, ServerError, RateLimited) as error:
            found = str(error)
        if found != known:
            yield found
        known = found
        time.sleep(_POLL_SECONDS)


def _lines(out: Console) -> tuple[Show, Waits]:
    shown: list[str] = [""]

    def show(rollout: Json) -> None:
        if (line := rollout_view.line(rollout)) != shown[0]:
            out.print(line, markup=False)
            shown[0] = line

    return show, lambda why: out.print(f"waiting: {why}", markup=False)


def _draw(client: Millrace, rollout: str) -> Json:
    last: Json = {}
    away = ""
    latencies: list[float] = []

    def render() -> object:
        if away or not last:
            return Text(f"waiting: {away}" if away else "…", style="dim")
        return rollout_view.picture(last, latencies[-_KEPT:], time.time())

    def show(found: Json) -> None:
        nonlocal last, away
        last, away = found, ""
        seconds = (found.get("new") or {}).get("mean_first_token_seconds")
        if seconds is not None:
            latencies.append(seconds)

    def waits(why: str) -> None:
        nonlocal away
        away = why

    # A console of its own: what is redrawn must be cut to the terminal, or it leaves remains.
    with Live(
        console=Console(highlight=False),
        get_renderable=render,  # type: ignore[arg-type]  # a picture is a RenderableType
        refresh_per_second=_REDRAWN_PER_SECOND,
    ):
        return _follow(client, rollout, show, waits)
