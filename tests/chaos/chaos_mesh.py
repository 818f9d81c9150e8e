"""A mesh of its own whose processes have crash points in them."""

import json
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from millrace_client.home import Home
from millrace_mesh import control
from millrace_mesh.layout import SERVICES, Layout
from tests.chaos import crash_points
from tests.chaos.crash_points import Plan
from tests.e2e.lifecycle import Mesh

_MILLRACE = Path(sys.executable).parent / "millrace"
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 120
_CLAIM_SECONDS = 10.0


@dataclass(frozen=True)
class Passing:
    """One passing of a crash point. ``time`` is in seconds since the epoch."""

    plan: str
    point: str
    hit: int
    pid: int
    time: float

    @property
    def process(self) -> str:
        """``compressor``, or ``compressor.jobs.compress`` of a job."""
        return self.point.partition(":")[0]


@dataclass(frozen=True)
class Fired:
    """A kill that was carried out."""

    point: str
    pid: int
    victim: int
    time: float


class ChaosMesh:
    """The running mesh, what is planned for it, and what is left of it on disk."""

    def __init__(self, layout: Layout, directory: Path) -> None:
        self.layout = layout
        self._directory = directory
        self.mesh = Mesh(layout, layout.home.operator_key_file.read_text().strip())

    def plan(self, point: str = "", hit: int = 1, victim: int = 0) -> Plan:
        """Say what is to happen next; what was planned before no longer is."""
        made = Plan(secrets.token_hex(6), point, hit, victim)
        temporary = self._directory / ".plan"
        temporary.write_text(json.dumps(made.__dict__))
        temporary.replace(self._directory / crash_points.PLAN)
        return made

    def fired(self, plan: Plan) -> Fired | None:
        """The kill that ``plan`` asked for, once it has happened."""
        path = self._directory / f"{plan.id}.{crash_points.FIRED}"
        if not path.exists():
            return None
        try:
            return Fired(**json.loads(path.read_text()))
        except ValueError:  # half written
            return None

    def passings(self) -> list[Passing]:
        """Every passing of a point since ``forget_passings``, in the order of time."""
        path = self._directory / crash_points.POINTS
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        return [Passing(**json.loads(line)) for line in whole.splitlines()]

    def forget_passings(self) -> None:
        (self._directory / crash_points.POINTS).unlink(missing_ok=True)

    def process(self, name: str) -> dict[str, Any]:
        """What the supervisor says of one process."""
        state = json.loads(self.layout.home.state_file.read_text())
        found: dict[str, Any] = next(p for p in state["processes"] if p["name"] == name)
        return found

    def recorded(self, after: Mapping[str, int]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Facts in the services' outboxes beyond the sequences ``after``, and where they end."""
        facts, ends = [], dict(after)
        for stage in SERVICES:
            path = self.layout.home.databases / f"{stage}.db"
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                rows = database.execute(
                    "SELECT sequence, document FROM outbox WHERE sequence > ? ORDER BY sequence",
                    (after.get(stage, 0),),
                ).fetchall()
            database.close()
            facts += [json.loads(document) for _, document in rows]
            ends[stage] = rows[-1][0] if rows else after.get(stage, 0)
        return facts, ends

    def leftovers(self) -> list[str]:
        """Temporary directories and files that nobody has taken away."""
        roots = (self.layout.home.data, self.layout.home.triton_models, self.layout.home.scratch)
        return [
            str(path.relative_to(self.layout.home.path))
            for root in roots
            for pattern in (".tmp-*", ".work-*", "*.new")
            for path in root.rglob(pattern)
        ]

    def jobs(self) -> list[psutil.Process]:
        """Job processes of this mesh that run, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                is_ours = process.environ().get("MILLRACE_HOME") == str(self.layout.home.path)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if is_ours and ".jobs." in crash_points.process_of(command):
                found.append(process)
        return found


@contextmanager
def running(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[ChaosMesh]:
    """A mesh with crash points, stopped at the end. ``settings`` go into its environment."""
    chaos = directory / "chaos"
    chaos.mkdir(parents=True)
    layout = _free_layout(directory / "home")
    environment = {
        **os.environ,
        "MILLRACE_HOME": str(layout.home.path),
        "MILLRACE_BASE_PORT": str(layout.base_port),
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent / "inject"), str(_ROOT), os.environ.get("PYTHONPATH", "")]
        ),
        crash_points.DIRECTORY_VARIABLE: str(chaos),
        **(settings or {}),
    }
    subprocess.run(
        [_MILLRACE, "up", "--detach"],
        env=environment,
        check=True,
        timeout=_START_SECONDS,
        stdout=subprocess.DEVNULL,
    )
    mesh = ChaosMesh(layout, chaos)
    try:
        yield mesh
    finally:
        mesh.mesh.close()
        control.stop(layout.home)


def _free_layout(home: Path) -> Layout:
    deadline = time.monotonic() + _CLAIM_SECONDS
    while time.monotonic() < deadline:
        layout = Layout(Home(home), random.randrange(20_000, 30_000, 100))
        if not any(_is_taken(port) for port in layout.ports.values()):
            return layout
    raise TimeoutError("no free ports for a mesh")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
