"""The facts of the lifecycle: shown as they come, and looked up afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from millrace_client.api import Json
from millrace_client.commands.events import line
from millrace_client.errors import MillraceError
from millrace_mesh.demo.session import Session


@contextmanager
def shown(session: Session) -> Iterator[None]:
    """Show every new fact while the block runs."""
    past = history(session)
    last = past[-1]["id"] if past else ""
    stop = threading.Event()

    def show() -> None:
        try:
            for event in session.api.events(follow=True, after=last):
                if stop.is_set():
                    return
                session.screen.say(line(event))
        except MillraceError as error:  # a demo goes on without its running commentary
            session.screen.say(f"the facts are not shown any more: {error}")

    # It may wait for a fact that never comes; the end of the process is its end.
    threading.Thread(target=show, name="facts", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def history(session: Session) -> list[Json]:
    """Every fact up to now, oldest first."""
    return session.patiently(lambda: list(session.api.events(follow=False)))
