"""What every part of the demo works with: clients in one trace, patience, the screen."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from millrace_client.api import Json, Millrace
from millrace_client.endpoint import of_home
from millrace_client.errors import NoGateway, RateLimited, ServerError
from millrace_mesh import control
from millrace_mesh.demo.plan import Plan
from millrace_mesh.demo.screen import DemoFailed, Screen
from millrace_mesh.layout import Layout
from millrace_runtime import telemetry

Found = TypeVar("Found")

_POLL_SECONDS = 0.5
_AWAY_SECONDS = 60.0
_OPENAI_TIMEOUT_SECONDS = 120.0
_AWAY = (NoGateway, ServerError, RateLimited)


@dataclass(frozen=True)
class Session:
    """One demo at work on one mesh.

    Attributes:
        api: for what OpenAI's API lacks.
        client: the ``openai`` package as it is.
    """

    layout: Layout
    plan: Plan
    screen: Screen
    api: Millrace
    client: openai.OpenAI

    def patiently(self, ask: Callable[[], Found]) -> Found:
        """The answer, through a gateway or a service that is being restarted.

        Raises:
            DemoFailed: it stays away.
        """
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                return ask()
            except _AWAY as error:
                if time.monotonic() > deadline:
                    raise DemoFailed(f"{error} (for {_AWAY_SECONDS:.0f} s)") from error
                self.screen.live(f"waiting: {error}")
                time.sleep(_POLL_SECONDS)

    def until(self, ask: Callable[[], Found | None], what: str, timeout_seconds: float) -> Found:
        """Poll until there is something.

        Raises:
            DemoFailed: not in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self.patiently(ask)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"{what}: not within {timeout_seconds:.0f} s. See: millrace doctor, "
                    f"and the logs in {self.layout.home.logs}"
                )
            time.sleep(_POLL_SECONDS)

    def ensure(self, create: Callable[[str], Json], what: str) -> Json:
        """The resource that ``create(request_id)`` made before, or makes now.

        What failed or was cancelled before is made anew, under the next request id.
        """
        attempt = 1
        while True:
            request_id = f"demo-{what}-{self.plan.digest}-{attempt}"
            found = self.patiently(lambda rid=request_id: create(rid))  # type: ignore[misc]
            if found["status"] == "succeeded":
                self.screen.say(f"{found['id']} was made by an earlier demo, and is used again")
            if found["status"] not in ("failed", "cancelled"):
                return found
            attempt += 1


def require_success(document: Json, what: str, log: str) -> None:
    """Raise DemoFailed, with the service's own reason, unless the work succeeded."""
    if document["status"] != "succeeded":
        error = document.get("error") or {"code": document["status"], "message": "no reason given"}
        raise DemoFailed(
            f"{what} {document['id']} {document['status']}: {error['code']}: {error['message']} "
            f"(millrace logs {log})"
        )


@contextmanager
def open_session(layout: Layout, plan: Plan, screen: Screen) -> Iterator[Session]:
    """A session on a mesh that runs; its requests belong to the trace they are made in."""
    endpoint = of_home(layout.home)
    with (
        Millrace(endpoint, on_request=_join_trace) as api,
        openai.DefaultHttpxClient(event_hooks={"request": [_join_trace]}) as http,
    ):
        client = openai.OpenAI(
            base_url=endpoint.openai_base_url,
            api_key=endpoint.api_key,
            http_client=http,
            timeout=_OPENAI_TIMEOUT_SECONDS,
            max_retries=0,  # whatever fails is to be seen
        )
        yield Session(layout, plan, screen, api, client)


def ensure_mesh(layout: Layout, screen: Screen) -> None:
    """Start the mesh, unless it runs.

    Raises:
        DemoFailed: it does not start.
    """
    running = control.find(layout.home)
    if running is not None:
        control.wait_until_ready(layout.home)
        screen.say(f"a mesh runs already in {layout.home.path}")
        return
    running = control.start_detached(
        layout,
        lambda known: screen.live(
            "waiting for "
            + ", ".join(p["name"] for p in known.state.get("processes", ()) if not p["ready_at"])
        ),
    )
    took = running.state["ready_at"] - running.state["started_at"]
    names = ", ".join(process["name"] for process in running.state["processes"])
    screen.say(f"{names} are ready after {took:.1f} s")
    screen.say(running.state["durability"])


def _join_trace(request: Any) -> None:
    """Say in which trace a request is made; ``openai`` brings a client library of its own."""
    traceparent = telemetry.current_traceparent()
    if traceparent:
        request.headers["traceparent"] = traceparent
