"""What the demo shows: lines that stay, and one that lives, where the terminal can."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.status import Status
from rich.text import Text

from millrace_client import text

_PLAIN_WIDTH = 160
_PLAIN_SECONDS = 10.0


class DemoFailed(Exception):
    """The demo cannot go on; the message says what failed and where to look."""


class Screen:
    """One console, shared by the demo's threads."""

    def __init__(self) -> None:
        is_live = sys.stdout.isatty()
        self.console = Console(
            soft_wrap=True, highlight=False, width=None if is_live else _PLAIN_WIDTH
        )
        self.started = time.monotonic()
        self._status: Status | None = None
        self._shown_at = 0.0
        self._is_live = is_live

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A part of the demo, with a heading and, at its end, its duration."""
        started = time.monotonic()
        self.console.print(Rule(f"[bold]{title}[/]", align="left", characters="─"))
        self._shown_at = 0.0
        with self.console.status("…") as self._status:
            yield
        self._status = None
        took = text.duration(time.monotonic() - started)
        self.say(Text(f"{title}: done in {took}", style="green"))

    def say(self, line: RenderableType) -> None:
        """A line that stays; its beginning says how old the demo is. Text is no markup."""
        age = int(time.monotonic() - self.started)
        shown = Text(f"{age // 60:02d}:{age % 60:02d}  ", style="dim")
        if isinstance(line, str | Text):
            shown.append(line if isinstance(line, Text) else Text(line))
            self.console.print(shown)
        else:
            self.console.print(line)

    def live(self, line: str) -> None:
        """Where things stand now: replaced by the next one, or said now and then in a pipe."""
        if self._is_live and self._status is not None:
            self._status.update(Text(line))
        elif time.monotonic() - self._shown_at >= _PLAIN_SECONDS:
            self._shown_at = time.monotonic()
            self.say(line)
