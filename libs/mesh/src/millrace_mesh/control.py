"""Starting, restarting and stopping a mesh from another process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from millrace_client.home import HOME_VARIABLE, Home
from millrace_mesh import restart_request, state
from millrace_mesh.layout import BASE_PORT_VARIABLE, SERVICES, Layout, require_free_ports
from millrace_mesh.restart_request import RestartRequest

START_TIMEOUT_SECONDS = 180.0
STOP_TIMEOUT_SECONDS = 60.0
# Whoever ends so often before the mesh was ever ready will not start the next time either.
_HOPELESS_STARTS = 5
_POLL_SECONDS = 0.1
_TAIL_LINES = 12


class StartFailed(Exception):
    """The mesh did not come up; the message says who and why, with its last lines."""


class RestartFailed(Exception):
    """A service was not restarted; the message says which and why."""


@dataclass(frozen=True)
class Running:
    """A mesh that runs: its supervisor's pid and last state."""

    pid: int
    state: dict[str, Any]

    @property
    def is_ready(self) -> bool:
        return self.state.get("phase") == state.READY


def find(home: Home) -> Running | None:
    """The mesh that runs in ``home``, if one does."""
    pid = state.running_pid(home.lock_file)
    if pid is None:
        return None
    try:
        document = json.loads(home.state_file.read_text())
    except FileNotFoundError:
        document = {}
    # A new supervisor takes the lock before it writes; till then the file is its forerunner's.
    return Running(pid, document if document.get("pid") == pid else {})


def start_detached(layout: Layout, on_wait: Callable[[Running], None] | None = None) -> Running:
    """Start a mesh that outlives this process, and wait until it is ready.

    ``on_wait`` is called with what is known about ten times a second.

    Raises:
        LayoutError: a port is taken.
        StartFailed: it did not become ready; what was started has been stopped.
    """
    require_free_ports(layout)
    layout.home.logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        HOME_VARIABLE: str(layout.home.path),
        BASE_PORT_VARIABLE: str(layout.base_port),
    }
    with (layout.home.logs / "supervisor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace_mesh", "--quiet"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return wait_until_ready(layout.home, process, on_wait)


def wait_until_ready(
    home: Home,
    supervisor: subprocess.Popen[bytes] | None = None,
    on_wait: Callable[[Running], None] | None = None,
) -> Running:
    """Wait for a mesh that is being started, by ``supervisor`` or by somebody else.

    Raises:
        StartFailed: as ``start_detached``.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if supervisor is not None and supervisor.poll() is not None:
            raise StartFailed(_tail(home, "supervisor"))
        running = find(home)
        if running is not None:
            if running.is_ready:
                return running
            if on_wait is not None:
                on_wait(running)
            _give_up_on_the_hopeless(home, running)
        time.sleep(_POLL_SECONDS)
    waiting = ", ".join(p["name"] for p in _not_ready(find(home)))
    stop(home)
    raise StartFailed(f"not ready after {START_TIMEOUT_SECONDS:.0f} s: {waiting}")


def restart(
    home: Home,
    services: Sequence[str] = SERVICES,
    on_wait: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Restart services one after the other, without a request failing, and wait for the end.

    ``on_wait`` is called with what is known (``state.RestartState``) about ten times a second.
    Returns the seconds that each old process took to drain. Requests take turns.

    Raises:
        RestartFailed: no mesh runs, or a service was not restarted; it runs on as it was, and
            those after it in ``services`` were left alone.
    """
    unknown = [name for name in services if name not in SERVICES]
    if unknown:
        known = ", ".join(SERVICES)
        raise RestartFailed(f"{unknown[0]!r} cannot be restarted; these can: {known}")
    with state.await_turn(home.restart_request_file.with_suffix(".lock")):
        return _restart(home, RestartRequest(tuple(services)), on_wait)


def _restart(
    home: Home, request: RestartRequest, on_wait: Callable[[dict[str, Any]], None] | None
) -> dict[str, float]:
    running = find(home)
    if running is None or not running.is_ready:
        raise RestartFailed(f"no mesh is ready in {home.path}")
    restart_request.write(home.restart_request_file, request)
    os.kill(running.pid, signal.SIGHUP)
    while True:
        time.sleep(_POLL_SECONDS)
        now = find(home)
        if now is None or now.pid != running.pid:
            raise RestartFailed("the mesh stopped meanwhile")
        known = now.state.get("restart") or {}
        if known.get("id") != request.id:
            continue
        if on_wait is not None:
            on_wait(known)
        if known["is_done"]:
            break
    if known["failure"]:
        raise RestartFailed(known["failure"])
    return dict(known["drain_seconds"])


def stop(home: Home, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> bool:
    """Stop the mesh of ``home`` and wait for its end; false when none runs.

    A supervisor that does not end in time is killed, and the kernel kills its children.
    """
    pid = state.running_pid(home.lock_file)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    if not _wait_until_gone(home, timeout_seconds):
        os.kill(pid, signal.SIGKILL)
        _wait_until_gone(home, timeout_seconds)
    return True


def _wait_until_gone(home: Home, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if state.running_pid(home.lock_file) is None:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _not_ready(running: Running | None) -> list[dict[str, Any]]:
    if running is None:
        return []
    return [p for p in running.state.get("processes", ()) if p["phase"] != state.READY]


def _give_up_on_the_hopeless(home: Home, running: Running) -> None:
    for process in _not_ready(running):
        if process["starts"] >= _HOPELESS_STARTS:
            name = process["name"]
            stop(home)
            raise StartFailed(f"{name} {process['last_end']}, again and again\n{_tail(home, name)}")


def _tail(home: Home, name: str) -> str:
    """The last lines of one log."""
    path = home.logs / f"{name}.log"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join([f"last lines of {path}:", *lines[-_TAIL_LINES:]])
