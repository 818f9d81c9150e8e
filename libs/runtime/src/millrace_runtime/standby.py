"""A job's process that was started ahead: what the job imports, it has imported already.

Importing torch, transformers and OpenVINO takes longer than most of what is done with them. A
``Standby`` keeps one process of one job module waiting (``jobs.run`` tells how it waits) from when
a job is expected, hands it to the next job, and starts another one once that job has ended. Without
a job for a while it is let go, for it holds some hundred megabytes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from millrace_runtime import jobs, work
from millrace_runtime.work import JobOutcome

IDLE_SECONDS = 900.0


class Standby:
    """``run_job`` is ``work.run_job`` with a process that is there already, if there is one.

    ``run`` starts one whenever ``expect`` was called (``hosting.Background``).
    """

    name = "standby"

    def __init__(self, module: str, idle_seconds: float = IDLE_SECONDS) -> None:
        self._module = module
        self._idle_seconds = idle_seconds
        self._expected = threading.Event()
        self._draining = threading.Event()
        self._lock = threading.Lock()
        self._waiting: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None

    def run_job(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        """Run a job to its end; the next one of the module finds a process waiting.

        A process dies with the thread that started it. Call this from threads that live as long
        as the service.
        """
        outcome = work.run_job(module, spec, directory, on_message, stop, start=self._start)
        if not stop.is_set():
            self._prepare()
        return outcome

    def expect(self) -> None:
        """Say that a job is going to come. Callable from any thread."""
        self._expected.set()

    def drain(self) -> None:
        self._draining.set()
        self._expected.set()

    def run(self) -> None:
        while True:
            self._expected.wait()
            self._expected.clear()
            if self._draining.is_set():
                self.close()
                return
            self._prepare()

    def close(self) -> None:
        """End the process that waits."""
        with self._lock:
            process, self._waiting = self._waiting, None
            if self._timer is not None:
                self._timer.cancel()
        if process is not None:
            _end(process)

    def _start(
        self, module: str, spec_path: Path, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            process, self._waiting = self._waiting, None
        if process is not None and module == self._module:
            order = {"spec": str(spec_path), "environment": environment}
            if _tell(process, order):
                return process
        if process is not None:
            _end(process)
        return work.start_process(module, spec_path, environment)

    def _prepare(self) -> None:
        with self._lock:
            if self._waiting is not None:
                return  # another worker's job has ended just before
            self._waiting = subprocess.Popen(
                [sys.executable, "-m", self._module, jobs.STANDBY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=work.environment(),
                start_new_session=True,
            )
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self._idle_seconds, self.close)
            self._timer.daemon = True
            self._timer.start()


def _tell(process: subprocess.Popen[bytes], order: dict[str, Any]) -> bool:
    """Give a waiting process its job; False when it has ended before it took it."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.close()
    except OSError:
        return False
    # Before that line may stand what a library printed while it was imported.
    return any(line == jobs.TAKEN for line in process.stdout)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
