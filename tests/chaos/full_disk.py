"""Every write path meets a full or failing disk: a clear answer, nothing half there, and recovery.

Two kinds of fault, both on real processes: a tmpfs without room, which takes the right to mount,
and the N-th call of a system call failed by ``strace -e inject`` (ENOSPC, EIO), which takes the
right to trace. Either is left out, and said so, where it is not allowed.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from sqlalchemy import inspect, select

from millrace_data.schema import FILES
from millrace_registry.repository import is_engine_folder
from millrace_runtime import manifest, storage
from millrace_runtime.database import open_database
from millrace_runtime.manifest import TEMPORARY_PREFIX, ManifestError
from tests.chaos.disks import DisksNotAllowed, fill, small_disk
from tests.chaos.full_disk_writer import PATHS, attempt
from tests.chaos.outcome import Outcome, Say

DISK_BYTES = 1 << 20
_ANSWER_SECONDS = 60
_CALLS = ("fsync", "mkdir", "rename", "write", "pwrite64", "openat", "ftruncate")
# In a subprocess the first opens and writes are Python's own start.
_CALLS_OF_JOBS = ("fsync", "mkdir", "rename")
_MOST_CALLS_BEFORE = {"fsync": 5, "mkdir": 3, "rename": 2, "write": 8, "pwrite64": 12}
_SHARE_BEGUN = 0.5
_ROOMS_BYTES = (0, 4096, 20_000, 60_000)


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Fail ``runs`` writes; half of them by a full disk, half by a failed system call.

    Raises:
        DisksNotAllowed: neither can be had on this machine.
    """
    draw = random.Random(seed)
    violations: list[str] = []
    counts: Counter[str] = Counter()
    kinds = _allowed(directory, say)
    if not kinds:
        raise DisksNotAllowed("neither mounting nor strace is allowed here")
    for number in range(runs):
        kind, path = kinds[number % len(kinds)], draw.choice(sorted(PATHS))
        fault = _full_disk if kind == "full disk" else _failed_call
        found = fault(path, draw, directory, counts)
        violations += [f"{number}: {each}" for each in found]
        say(f"{number + 1}: {kind}, {path}: {len(found)} broken")
    return Outcome("full_disk", sum(counts.values()), violations, dict(counts))


def _allowed(directory: Path, say: Say) -> list[str]:
    kinds = []
    try:
        with small_disk(directory / "probe", DISK_BYTES):
            kinds.append("full disk")
    except DisksNotAllowed as error:
        say(f"left out: full disks: {error}")
    probe = ["strace", "-f", "-o", "/dev/null", "true"]
    if shutil.which("strace") and subprocess.run(probe, capture_output=True).returncode == 0:
        kinds.append("failed call")
    else:
        say("left out: failed system calls: strace is not installed, or may not trace")
    return kinds


def _full_disk(path: str, draw: random.Random, directory: Path, counts: Counter[str]) -> list[str]:
    room_bytes = draw.choice(_ROOMS_BYTES)
    with small_disk(directory / "disk", DISK_BYTES) as disk:
        is_begun = draw.random() < _SHARE_BEGUN
        if is_begun:
            assert "done" in _ask(path, disk)  # its database and folders are there already
        ballast = fill(disk)
        with ballast.open("r+b") as stream:
            stream.truncate(ballast.stat().st_size - room_bytes)
        told = _ask(path, disk)
        what = f"{path} with {room_bytes} bytes left"
        found = list(
            _broken_promises(what, path, disk, told, is_certain=not (room_bytes or is_begun))
        )
        counts["full_disk_done_count" if "done" in told else "full_disk_refused_count"] += 1
        ballast.unlink()
        found += _not_recovered(what, path, disk)
    return found


def _failed_call(
    path: str, draw: random.Random, directory: Path, counts: Counter[str]
) -> list[str]:
    call = draw.choice(_CALLS_OF_JOBS if path == "job" else _CALLS)
    error = draw.choice(("ENOSPC", "EIO"))
    number = draw.randint(1, _MOST_CALLS_BEFORE.get(call, 10))
    what = f"{path} with {error} at {call} {number}"
    with tempfile.TemporaryDirectory(dir=directory) as name:
        folder = Path(name)
        told = _ask(path, folder, f"inject={call}:error={error}:when={number}")
        counts["failed_call_done_count" if "done" in told else "failed_call_refused_count"] += 1
        found = list(_broken_promises(what, path, folder, told, is_certain=False))
        found += _not_recovered(what, path, folder)
    return found


def _ask(path: str, folder: Path, injection: str = "") -> dict[str, str]:
    """Take a write path in a process of its own; what it answered (nothing, if it could not)."""
    begin, answer = os.pipe(), os.pipe()
    writer = os.fork()  # with all that is imported here: a start from nothing takes seconds
    if writer == 0:
        _take(path, folder, begin[0], answer[1])
    for end in (begin[0], answer[1]):
        os.close(end)
    try:
        tracer = _trace(writer, injection) if injection else None
        os.write(begin[1], b"go")
        with open(answer[0], "rb", closefd=False) as stream:
            told = stream.read()
        os.waitpid(writer, 0)
        if tracer is not None:
            tracer.communicate(timeout=_ANSWER_SECONDS)
    finally:
        for end in (begin[1], answer[0]):
            os.close(end)
    return dict(json.loads(told)) if told else {}


def _take(path: str, folder: Path, begin: int, answer: int) -> NoReturn:
    try:
        os.read(begin, 2)
        os.write(answer, json.dumps(attempt(path, folder)).encode())
    finally:
        os._exit(0)


def _trace(pid: int, injection: str) -> subprocess.Popen[str]:
    """strace, once it has attached."""
    options = ["-f", "-o", "/dev/null", "-e", f"trace={injection.split('=')[1].split(':')[0]}"]
    tracer = subprocess.Popen(
        ["strace", *options, "-e", injection, "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    assert "attached" in first, f"strace did not attach: {first}"
    return tracer


def _broken_promises(
    what: str, path: str, folder: Path, told: dict[str, str], *, is_certain: bool
) -> Iterator[str]:
    if is_certain and "done" in told:
        yield f"{what}: it says that it is done"
    if "reason" in told and told["reason"] not in storage.REASONS:
        yield f"{what}: the answer is {told['reason']}: {told['message']}"
    for complaint in _half_there(folder):
        yield f"{what}: {complaint}"
    left = [each.name for each in (folder / "data").rglob(f"{TEMPORARY_PREFIX}*")]
    if told and left and path != "job":
        yield f"{what}: left behind: {left}"


def _not_recovered(what: str, path: str, folder: Path) -> Iterator[str]:
    """The same again, with room."""
    told = _ask(path, folder)
    if "done" not in told:
        yield f"{what}: it did not recover: {told}"
    for complaint in _half_there(folder):
        yield f"{what}, and again: {complaint}"


def _half_there(folder: Path) -> Iterator[str]:
    """What must never be seen: content with its final name that is not whole, rows without it."""
    for path in (folder / "data").rglob("step-1"):
        try:
            manifest.verify(path, manifest.read(path)[1])
        except ManifestError as error:
            if not any(part.startswith(TEMPORARY_PREFIX) for part in path.parts):
                yield f"half a directory is visible: {error}"
    version = folder / "triton" / "acme.demo" / "1"
    if version.exists() and not is_engine_folder(version, folder / "data"):
        yield "half a version is in Triton's repository"
    for digest in _available_digests(folder):
        stored = folder / "data" / "files" / digest.removeprefix("sha256:")
        if not stored.exists() or manifest.sha256_file(stored) != digest:
            yield f"the file {digest} has a row and no content"


def _available_digests(folder: Path) -> list[str]:
    """Of the files that are shown; read from a copy, since there may be no room to open it."""
    with tempfile.TemporaryDirectory() as aside:
        for part in folder.glob("service.db*"):
            shutil.copyfile(part, Path(aside) / part.name)
        database = open_database(f"sqlite:///{aside}/service.db")
        with closing(database), database.engine.connect() as connection:
            if not inspect(connection).has_table(FILES.name):
                return []
            query = select(FILES.c.digest).where(FILES.c.state == "AVAILABLE")
            return list(connection.execute(query).scalars())
