"""Places where a crash could matter, found by running: nothing of it is in the services' code.

A process of the mesh that starts with ``tests/chaos/inject`` on its PYTHONPATH installs this
module (see ``inject/sitecustomize.py``). From then on it passes a named point right before and
right after everything that leaves a trace outside its memory:

    commit     a database transaction that wrote something
    publish    a message to NATS; ack, nak, term: an answer to one
    rename, replace, unlink, fsync, rmtree
    start, end a job subprocess; line: a job's message to its service
    triton     a call that changes or asks Triton
    call       a gRPC question to another service
    exit       a job process's own end

A point's name is ``<process>: <module>.<functions> <operation> <before|after>``, the functions
being the nearest of ours, outermost first, so new code brings its own points along. What is
done at a point is told by a plan file in the directory that ``MILLRACE_CHAOS_DIRECTORY`` names:
every point is noted, and at the planned hit of the planned point the planned victim gets
SIGKILL, once.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

DIRECTORY_VARIABLE = "MILLRACE_CHAOS_DIRECTORY"
PLAN, POINTS, FIRED = "plan.json", "points.jsonl", "fired.json"
# A point inside a loop that never ends (a controller's lease) is noted so many times, no more.
_NOTED_TIMES = 40
_OWN = "millrace_"
_REPLAY = "tests.chaos.replay."
# Frames that say how something is done, not what for.
_MEANS = ("millrace_runtime.database",)


@dataclass(frozen=True)
class Plan:
    """What is to happen: at the ``hit``-th passing of ``point``, kill ``victim`` (0: itself)."""

    id: str
    point: str = ""
    hit: int = 1
    victim: int = 0


class Points:
    """The points of this process."""

    def __init__(self, directory: Path, process: str) -> None:
        self._directory = directory
        self._process = process
        self._plan: Plan | None = None
        self._plan_time = 0
        self._hits: Counter[str] = Counter()

    def reach(self, operation: str) -> None:
        """Pass a point: note it, and do what the plan says about it."""
        plan = self._read_plan()
        place = _place(sys._getframe(1)) if plan is not None else ""
        if plan is None or not place:
            return
        name = f"{self._process}: {place} {operation}"
        self._hits[name] += 1
        if self._hits[name] <= _NOTED_TIMES:
            self._note({"plan": plan.id, "point": name, "hit": self._hits[name]})
        if name == plan.point and self._hits[name] == plan.hit:
            self._fire(plan)

    def _read_plan(self) -> Plan | None:
        path = self._directory / PLAN
        try:
            changed = os.stat(path).st_mtime_ns
        except FileNotFoundError:
            return None
        if changed != self._plan_time:
            self._plan_time = changed
            self._plan = Plan(**json.loads(path.read_text()))
            self._hits.clear()
        return self._plan

    def _note(self, document: dict[str, Any]) -> None:
        line = json.dumps({**document, "pid": os.getpid(), "time": time.time()}) + "\n"
        descriptor = os.open(self._directory / POINTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())  # one write: whole lines, whoever else writes
        os.close(descriptor)

    def _fire(self, plan: Plan) -> None:
        victim = plan.victim or os.getpid()
        content = {"point": plan.point, "pid": os.getpid(), "victim": victim, "time": time.time()}
        try:
            with open(self._directory / f"{plan.id}.{FIRED}", "x") as file:
                json.dump(content, file)
        except FileExistsError:
            return  # once: whoever starts again passes here unharmed
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def install(directory: Path, process: str) -> None:
    """Put points around what this process will do."""
    points = Points(directory, process)
    for holder, names in ((os, ("rename", "replace", "unlink", "fsync")), (shutil, ("rmtree",))):
        for name in names:
            setattr(holder, name, _around(points, getattr(holder, name), name))
    _watch_subprocesses(points)
    sys.meta_path.insert(0, _Patching(points))


def process_of(command: Sequence[str]) -> str:
    """``trainer`` or ``trainer.jobs.launch`` of a command line; empty when it is none of ours."""
    module = next((part for part in command if part.startswith((_OWN, _REPLAY))), "")
    if module.startswith(_REPLAY):
        return f"{module.removeprefix(_REPLAY)}.jobs.replay"
    return "" if module.startswith("millrace_mesh") else module.removeprefix(_OWN)


def _place(frame: FrameType | None) -> str:
    """``module.outer.inner`` of the nearest functions of ours, those of one module alone."""
    while frame is not None and _module(frame) in ("", *_MEANS):
        frame = frame.f_back
    if frame is None or frame.f_code.co_name == "<module>":
        return ""  # what libraries do while they are imported
    module, functions = _module(frame), []
    while frame is not None and _module(frame) in (module, *_MEANS) and len(functions) < 3:
        if _module(frame) == module and frame.f_code.co_name[0] != "<":
            functions.insert(0, frame.f_code.co_name)
        frame = frame.f_back
    return ".".join([module.removeprefix(_OWN), *functions])


def _module(frame: FrameType) -> str:
    """Name of a frame's module where it is ours, else empty."""
    spec = frame.f_globals.get("__spec__")
    name = spec.name if spec is not None else frame.f_globals.get("__name__", "")
    return name if name.startswith(_OWN) else ""


def _around(points: Points, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def surrounded(*arguments: Any, **named: Any) -> Any:
        points.reach(f"{name} before")
        result = function(*arguments, **named)
        points.reach(f"{name} after")
        return result

    return surrounded


def _around_async(points: Points, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    async def surrounded(*arguments: Any, **named: Any) -> Any:
        points.reach(f"{name} before")
        result = await function(*arguments, **named)
        points.reach(f"{name} after")
        return result

    return surrounded


def _watch_subprocesses(points: Points) -> None:
    start, wait = subprocess.Popen.__init__, subprocess.Popen.wait
    subprocess.Popen.__init__ = _around(points, start, "start")  # type: ignore[method-assign]
    subprocess.Popen.wait = _around(points, wait, "end")  # type: ignore[method-assign]


def _patch_database(points: Points, module: ModuleType) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def note_write(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            connection.info["chaos.wrote"] = True

    event.listen(Engine, "after_cursor_execute", note_write)
    event.listen(Engine, "begin", lambda connection: connection.info.pop("chaos.wrote", None))

    @contextlib.contextmanager
    def transaction(self: Any) -> Iterator[Any]:
        wrote = False
        with self.engine.begin() as connection:
            yield connection
            wrote = connection.info.get("chaos.wrote", False)
            if wrote:
                points.reach("commit before")
        if wrote:
            points.reach("commit after")

    module.Database.transaction = transaction  # type: ignore[attr-defined]


def _patch_jetstream(points: Points, module: ModuleType) -> None:
    holder = module.JetStreamContext  # type: ignore[attr-defined]
    for name in ("publish", "publish_async"):
        setattr(holder, name, _around_async(points, getattr(holder, name), name))


def _patch_messages(points: Points, module: ModuleType) -> None:
    for name in ("ack", "nak", "term"):
        function = getattr(module.Msg, name)  # type: ignore[attr-defined]
        setattr(module.Msg, name, _around_async(points, function, name))  # type: ignore[attr-defined]


def _patch_triton(points: Points, module: ModuleType) -> None:
    for name in ("load", "unload", "ask"):
        function = getattr(module.Triton, name)  # type: ignore[attr-defined]
        setattr(module.Triton, name, _around(points, function, f"triton {name}"))  # type: ignore[attr-defined]


def _patch_jobs(points: Points, module: ModuleType) -> None:
    holder: Any = module
    holder.Reporter.report = _around(points, holder.Reporter.report, "line")
    leave = os._exit

    def exit_at_point(status: int) -> None:
        points.reach("exit before")
        leave(status)

    os._exit = exit_at_point  # type: ignore[assignment]


def _patch_work(_points: Points, module: ModuleType) -> None:
    from tests.chaos import replay

    directory = os.environ.get(replay.DIRECTORY_VARIABLE)
    if directory:
        holder: Any = module
        holder.run_job = replay.around(holder.run_job, Path(directory))


def _patch_standby(_points: Points, module: ModuleType) -> None:
    """Jobs that are played again import nothing: none is started ahead."""
    from tests.chaos import replay

    if os.environ.get(replay.DIRECTORY_VARIABLE):
        holder: Any = module
        holder.Standby._prepare = lambda standby: None


def _patch_calls(points: Points, module: ModuleType) -> None:
    holder: Any = module
    for name in ("_UnaryUnaryMultiCallable", "_StreamUnaryMultiCallable"):
        multicallable = getattr(holder, name)
        multicallable.__call__ = _around(points, multicallable.__call__, "call")


_PATCHES: dict[str, Callable[[Points, ModuleType], None]] = {
    "millrace_runtime.database": _patch_database,
    "nats.js.client": _patch_jetstream,
    "nats.aio.msg": _patch_messages,
    "millrace_registry.triton": _patch_triton,
    "millrace_runtime.jobs": _patch_jobs,
    "millrace_runtime.work": _patch_work,
    "millrace_runtime.standby": _patch_standby,
    "grpc._channel": _patch_calls,
}


class _Patching(importlib.abc.MetaPathFinder):
    """Patches a module right after it was first imported."""

    def __init__(self, points: Points) -> None:
        self._points = points

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = _PATCHES.get(name)
        if patch is None:
            return None
        spec = next(
            (
                found
                for finder in sys.meta_path
                if finder is not self and (found := finder.find_spec(name, path, target))
            ),
            None,
        )
        if spec is not None and spec.loader is not None:
            self._patch_after(spec.loader, patch)
        return spec

    def _patch_after(self, loader: Any, patch: Callable[[Points, ModuleType], None]) -> None:
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(self._points, module)

        loader.exec_module = execute_and_patch
