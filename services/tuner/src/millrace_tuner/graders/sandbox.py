"""Python graders in a process of their own, which can do nothing but compute.

The process (``sandbox_child.py``) is kept for many samples and started anew after it was ended;
so a grader's global variables may live from one sample to the next, within one job. Each call has
a wall-clock limit; when it passes, the whole process group is killed. What holds inside, and what
does not, is written in ``confinement.py``.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from millrace_runtime.errors import InvalidArgument

_CHILD = Path(__file__).with_name("sandbox_child.py")
_NOBODY = 65534
_MOST_ANSWER_BYTES = 64 * 1024
_GLANCE_SECONDS = 0.1
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_TIME_ZONES = "/usr/share/zoneinfo"
# One thread: the address space is limited, and the samples are what is many.
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# A grader's process dies with the thread that started it (PR_SET_PDEATHSIG), so that none is left
# when we are killed: this thread lives as long as we do.
_STARTER = ThreadPoolExecutor(1, "grader-starter")


@dataclass(frozen=True)
class Limits:
    """What one grader's process may use: as much as OpenAI's, but for its files.

    Attributes:
        call_seconds: wall-clock and processor time of one call.
        start_seconds: of loading the source, with what it imports.
        directory_bytes: of all files it writes; looked at ten times a second.
    """

    call_seconds: float = 120.0
    start_seconds: float = 30.0
    memory_bytes: int = 2 * 2**30
    directory_bytes: int = 64 * 2**20


class SandboxError(Exception):
    """The sandbox gave no number."""


class GraderFailed(SandboxError):
    """By the grader's own doing: its code raised, was too slow, used too much, or ended."""


class SandboxFailed(SandboxError):
    """By ours.

    Attributes:
        kind: snake_case identifier: ``sandbox_unavailable``, ``sandbox_error``.
    """

    def __init__(self, message: str, kind: str = "sandbox_error") -> None:
        super().__init__(message)
        self.kind = kind


class PythonSandbox:
    """One grader's source, and the process that runs it. Safe to use from several threads."""

    def __init__(self, source: str, limits: Limits = Limits()) -> None:
        self._source = source
        self._limits = limits
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def grade(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        """What ``grade(sample, item)`` returns: a finite number.

        Raises:
            GraderFailed, SandboxFailed
        """
        with self._lock:
            child = self._ready_child()
            try:
                return child.grade(sample, item)
            finally:
                if not child.is_usable:
                    self._end()

    def close(self) -> None:
        with self._lock:
            self._end()

    def _ready_child(self) -> "_Child":
        if self._child is not None and self._child.has_ended():
            self._end()
        if self._child is None:
            self._child = _started(self._source, self._limits, check=False)
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


def check_source(source: str, field: str, limits: Limits = Limits()) -> None:
    """Compile a source, in a sandbox too, without running it.

    Raises:
        InvalidArgument: it is no Python, or defines no ``grade``; naming ``field``.
        SandboxFailed
    """
    try:
        _started(source, limits, check=True).end()
    except GraderFailed as error:
        raise InvalidArgument(
            f"{field}: {error}", reason="INVALID_GRADER_SOURCE", field=field
        ) from None


def _started(source: str, limits: Limits, *, check: bool) -> "_Child":
    child = _Child(limits)
    try:
        child.load(source, check=check)
    except BaseException:
        child.end()
        raise
    return child


class _Child:
    """One process and its directory. Not usable any more after any error but the grader's own."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.is_usable = True
        self._directory = Path(tempfile.mkdtemp(prefix="millrace-grader-"))
        self._user = _other_user(self._directory)
        if self._user is not None:
            os.chown(self._directory, self._user, self._user)
        place = str(self._directory)
        try:
            self._process = _STARTER.submit(
                subprocess.Popen[bytes],
                [sys.executable, "-I", "-S", "-B", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=place,
                env={**_ENVIRONMENT, "HOME": place, "TMPDIR": place},
                start_new_session=True,
                bufsize=0,
            ).result()
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise SandboxFailed(f"the sandbox cannot be started: {error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)

    def load(self, source: str, *, check: bool) -> None:
        confinement = {
            "memory_bytes": self._limits.memory_bytes,
            "file_bytes": self._limits.directory_bytes,
            "user": self._user,
            "readable": [*_SYSTEM_LIBRARIES, *_python_paths(), _TIME_ZONES],
            "directory": str(self._directory),
        }
        beginning = {
            "confine": confinement,
            "path": _package_paths(),
            "source": source,
            "check": check,
        }
        answer = self._ask(beginning, self._limits.start_seconds, "loading its source")
        if error := answer.get("error"):
            raise _fault(error)

    def grade(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> float:
        # Unguessable, so that no answer can be given before it is asked for.
        call = uuid.uuid4().hex
        seconds = self._limits.call_seconds
        question = {"id": call, "sample": sample, "item": item, "cpu_seconds": int(seconds) + 1}
        answer = self._ask(question, seconds, "one call")
        if answer.get("id") != call:
            self.is_usable = False
            raise GraderFailed("the grader wrote to the sandbox's own pipes")
        if error := answer.get("error"):
            raise _fault(error)
        return float(answer["reward"])

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill whatever runs, and remove its directory."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._requests.close()
        self._answers.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _ask(self, question: Mapping[str, Any], seconds: float, what: str) -> dict[str, Any]:
        usable, self.is_usable = self.is_usable, False
        line = self._exchange(json.dumps(question).encode() + b"\n", seconds, what)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise GraderFailed("the grader wrote to the sandbox's own pipes")
        self.is_usable = usable
        return answer

    def _exchange(self, question: bytes, seconds: float, what: str) -> bytes:
        """Send a line and read one, whichever side is ready first.

        Raises:
            GraderFailed: it took too long, wrote too much, or the process ended.
        """
        deadline = time.monotonic() + seconds
        unsent, answer = memoryview(question), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_WRITE)
            selector.register(self._answers, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GraderFailed(f"{what} took longer than {seconds:g} s")
                for key, _ in selector.select(min(left, _GLANCE_SECONDS)):
                    if key.fileobj is self._answers:
                        answer += self._read(what, len(answer))
                        continue
                    unsent = unsent[self._write(unsent) :]
                    if not unsent:
                        selector.unregister(self._requests)
                self._check_directory(what)
        return bytes(answer)

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._requests.fileno(), data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)  # it has ended; reading says how

    def _read(self, what: str, so_far: int) -> bytes:
        data = os.read(self._answers.fileno(), _MOST_ANSWER_BYTES)
        if so_far + len(data) > _MOST_ANSWER_BYTES:
            raise GraderFailed("the grader wrote to the sandbox's own pipes")
        if data:
            return data
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        raise GraderFailed(f"the grader's process ended during {what}: {self._end_words()}")

    def _end_words(self) -> str:
        code = self._process.returncode
        if code is None:
            return "it closed its pipes"
        if code >= 0:
            return f"it exited with status {code}"
        return f"by {signal.Signals(-code).name}"

    def _check_directory(self, what: str) -> None:
        used = sum(_size(path) for path in self._directory.rglob("*"))
        if used > self._limits.directory_bytes:
            raise GraderFailed(f"it wrote more than {self._limits.directory_bytes} bytes in {what}")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed meanwhile
        return 0


def _fault(error: Mapping[str, Any]) -> SandboxError:
    if error["kind"] == "sandbox_unavailable":
        return SandboxFailed(str(error["message"]), "sandbox_unavailable")
    return GraderFailed(str(error["message"]))


@cache
def _package_paths() -> list[str]:
    """Where installed packages lie: graders may import numpy, rapidfuzz and the like."""
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))


@cache
def _python_paths() -> list[str]:
    """What the interpreter reads: its standard library, and the packages."""
    standard = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")]
    libraries = [str(Path(prefix) / "lib") for prefix in {sys.base_prefix, sys.base_exec_prefix}]
    return [*standard, *libraries, *_package_paths()]


def _other_user(directory: Path) -> int | None:
    """Who runs the grader when we are root: nobody, if nobody can read the interpreter.

    Otherwise it stays root without any capability, within what Landlock and seccomp allow.
    """
    if os.geteuid() != 0:
        return None
    needed = [*map(Path, _python_paths()), directory.parent]
    return _NOBODY if all(_is_open_to_all(path) for path in needed if path.exists()) else None


def _is_open_to_all(path: Path) -> bool:
    resolved = path.resolve()
    return all(place.stat().st_mode & 0o001 for place in (resolved, *resolved.parents))
