"""What the supervisor says about the mesh: one JSON file, and a lock while it runs."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

STARTING, READY, STOPPING, STOPPED = "starting", "ready", "stopping", "stopped"
WAITING = "waiting"  # ended, and started again after its back-off


@dataclass
class ProcessState:
    """One process as its supervisor sees it. ``ready_at`` is in seconds since the epoch."""

    name: str
    address: str
    phase: str = STARTING
    pid: int | None = None
    starts: int = 0
    ready_at: float | None = None
    last_end: str = ""

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)


@dataclass
class RestartState:
    """The last rolling restart that was asked for, by its request's ``id``.

    ``drain_seconds`` holds, for each service that was restarted, the time from SIGTERM to the
    end of its old process.
    """

    id: str
    services: list[str]
    current: str = ""
    is_done: bool = False
    failure: str = ""
    drain_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class MeshState:
    """The whole mesh. Times are in seconds since the epoch."""

    pid: int
    phase: str
    base_port: int
    gateway_url: str
    gateway_grpc: str
    started_at: float
    ready_at: float | None = None
    durability: str = ""
    failure: str = ""
    processes: list[ProcessState] = field(default_factory=list)
    restart: RestartState | None = None


class AlreadyRunning(Exception):
    """Another supervisor holds the lock of this home."""

    def __init__(self, home: Path, pid: int | None) -> None:
        super().__init__(f"a mesh already runs in {home} (pid {pid})")
        self.pid = pid


def write(path: Path, state: MeshState) -> None:
    """Replace the file whole: a reader never sees half of it."""
    document = asdict(state)
    for process, document_of in zip(state.processes, document["processes"], strict=True):
        document_of["restarts"] = process.restarts
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=2))
    temporary.replace(path)


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Be the one supervisor of this home.

    Raises:
        AlreadyRunning: somebody else is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(path.parent, _pid_in(path)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def await_turn(path: Path) -> Iterator[None]:
    """Hold the lock at ``path``, waiting for whoever has it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def running_pid(path: Path) -> int | None:
    """Pid of the supervisor that holds the lock; ``None`` when nobody does.

    The number alone proves nothing, since pids are used again; the lock does.
    """
    if not path.exists():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(path)
    return None


def _pid_in(path: Path) -> int | None:
    text = path.read_text()
    return int(text) if text.isdecimal() else None
