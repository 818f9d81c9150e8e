"""Workers: threads that claim leased rows, do their work and keep the lease alive meanwhile."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from millrace_runtime import storage, telemetry
from millrace_runtime.content import ContentOutsideRoot
from millrace_runtime.jobs import (
    LOG_NAME,
    NICENESS_VARIABLE,
    PARENT_VARIABLE,
    SERVICE_VARIABLE,
)
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.manifest import ManifestError

LOG = logging.getLogger(__name__)

CONTENT_DAMAGED = "CONTENT_DAMAGED"
"""The reason of work that ends because what it starts from is not what was committed."""

_POLL_SECONDS = 1.0
_LONGEST_RENEWAL_SECONDS = 1.0  # cancelling is noticed at a renewal, and should be soon
_JOB_GRACE_SECONDS = 5.0


class WorkSource(Protocol):
    """Where a worker's rows come from; the service's ``store.py`` implements it."""

    def claim(self) -> Lease | None: ...

    def renew(self, lease: Lease) -> Lease:
        """Raises LeaseLost, also when the work was cancelled: cancelling raises the epoch."""
        ...

    def release(self, lease: Lease) -> None: ...


class Worker:
    """Does one piece of work at a time.

    ``perform(lease, stop)`` does it; ``stop`` is set when the lease is lost (taken over, or
    the work cancelled) or the service drains, and ``perform`` must then return soon and write
    no more. What it raises is logged, and the row is given back after a second, then two, four,
    at last at its lease's pace: work that failed by chance goes on soon, and work that always
    fails is never tried in a tight loop.

    ``lease_seconds`` is how long the source's leases last: they are renewed three times in
    that time, and once a second at least.
    """

    def __init__(
        self,
        name: str,
        source: WorkSource,
        perform: Callable[[Lease, threading.Event], None],
        lease_seconds: float = 15.0,
    ) -> None:
        self.name = name
        self._source = source
        self._perform = perform
        self._renew_seconds = min(lease_seconds / 3, _LONGEST_RENEWAL_SECONDS)
        self._resting = _Resting(lease_seconds)
        self._doorbell = threading.Event()
        self._draining = threading.Event()
        self._stop_current = threading.Event()

    def ring(self) -> None:
        """Say that there may be work. Only speeds things up."""
        self._doorbell.set()

    def drain(self) -> None:
        """Stop the work in hand, give its row back, and end ``run``."""
        self._draining.set()
        self._stop_current.set()
        self._doorbell.set()

    def run(self) -> None:
        """Work until ``drain``."""
        while not self._draining.is_set():
            self._doorbell.clear()
            try:
                worked = self._work_once()
            except Exception:  # the worker must outlive any one piece of work
                LOG.exception("%s: work failed; it is tried again", self.name)
                worked = False
            if not worked:
                self._doorbell.wait(_POLL_SECONDS)

    def _work_once(self) -> bool:
        for rested in self._resting.due():
            self._source.release(rested)
        lease = self._source.claim()
        if lease is None:
            return False
        self._stop_current = threading.Event()
        if self._draining.is_set():
            self._stop_current.set()
        finished = threading.Event()
        keeper = threading.Thread(
            target=self._keep, args=(lease, finished, self._stop_current), daemon=True
        )
        keeper.start()
        try:
            self._perform(lease, self._stop_current)
            self._resting.forget(lease)
        except LeaseLost as error:
            LOG.info("%s: %s", self.name, error)
        except Exception:
            self._resting.add(lease)
            raise
        finally:
            finished.set()
            keeper.join()
        if self._draining.is_set():
            self._source.release(lease)
        return True

    def _keep(self, lease: Lease, finished: threading.Event, stop: threading.Event) -> None:
        while not finished.wait(self._renew_seconds):
            try:
                lease = self._source.renew(lease)
            except LeaseLost as error:
                LOG.info("%s: %s", self.name, error)
                stop.set()
                return
            except Exception:  # a busy database is no reason to stop before the lease ends
                LOG.exception("%s: could not renew the lease of %s", self.name, lease.id)


def ring_all(workers: Sequence[Worker]) -> Callable[[], None]:
    """What rings all of them."""

    def ring() -> None:
        for worker in workers:
            worker.ring()

    return ring


class _Resting:
    """Rows whose work has failed, until each is to be given back."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        self._failures: Counter[str] = Counter()
        self._until: dict[Lease, float] = {}

    def add(self, lease: Lease) -> None:
        delay_seconds = min(2.0 ** self._failures[lease.id], self._longest_seconds)
        self._failures[lease.id] += 1
        self._until[lease] = time.monotonic() + delay_seconds

    def forget(self, lease: Lease) -> None:
        """It went well, so what came before is forgiven."""
        self._failures.pop(lease.id, None)

    def due(self) -> list[Lease]:
        """Leases that have rested enough; each is told once."""
        now = time.monotonic()
        rested = [lease for lease, until in self._until.items() if until <= now]
        for lease in rested:
            del self._until[lease]
        return rested


@dataclass(frozen=True)
class JobResult:
    """The job succeeded; ``fields`` are those of its ``result`` line."""

    fields: dict[str, Any]


@dataclass(frozen=True)
class JobFailure:
    """The job failed; ``reason`` is UPPER_SNAKE, INTERNAL or CRASHED when it is our fault."""

    reason: str
    message: str


@dataclass(frozen=True)
class JobStopped:
    """The job was stopped because ``stop`` was set."""


JobOutcome = JobResult | JobFailure | JobStopped


def content_failure(error: ManifestError | ContentOutsideRoot | OSError) -> JobFailure:
    """Why work cannot begin with its content: it is damaged, or its disk is at fault for now."""
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        reason = storage.reason_of(error) or storage.ERROR
        return JobFailure(reason, f"what the work starts from cannot be read: {error}")
    return JobFailure(CONTENT_DAMAGED, str(error))


StartProcess = Callable[[str, Path, dict[str, str]], subprocess.Popen[bytes]]
"""Starts the job of a module with a specification and an environment."""


def run_job(
    module: str,
    spec: dict[str, Any],
    directory: Path,
    on_message: Callable[[dict[str, Any]], None],
    stop: threading.Event,
    patience_seconds: float = 10.0,
    start: StartProcess | None = None,
    niceness: int = 0,
) -> JobOutcome:
    """Run ``python -m module SPEC.json`` to its end (the contract is in ``jobs.py``).

    ``on_message`` gets each ``progress`` and ``checkpoint`` line as it comes; what it raises
    ends the job. Standard error is appended to ``directory/job.log``. The job belongs to the
    current span's trace, and dies with this thread. On a full disk it is not even started.

    ``patience_seconds`` is how long it goes on while this process is stopped: less than a lease
    lasts, so that it has ended when another service takes the work over. ``start`` may have a
    process that waits for its specification already (``standby.py``). ``niceness``, 0 to 19, is
    how far it gives way to others on the same CPUs.
    """
    spec_path = directory / "spec.json"
    if fault := _write_spec(spec, spec_path):
        return fault
    starting = start or start_process
    told = environment(patience_seconds) | ({NICENESS_VARIABLE: str(niceness)} if niceness else {})
    with starting(module, spec_path, told) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_end_when, args=(process, stop, ended), daemon=True)
        watcher.start()
        try:
            last = _read_messages(process, on_message)
        except BaseException:
            _signal_group(process, signal.SIGKILL)
            raise
        finally:
            process.wait()
            ended.set()
            watcher.join()
    if stop.is_set() and last.get("kind") != "result":
        return JobStopped()
    return _outcome(last, process.returncode, directory / LOG_NAME)


def _write_spec(spec: dict[str, Any], path: Path) -> JobFailure | None:
    """Write what the job reads; what is said when the disk does not take it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(spec))
        (path.parent / LOG_NAME).touch()
        reason = storage.FULL if storage.is_full(path.parent) else None
    except OSError as error:
        reason = storage.reason_of(error)
        if reason is None:
            raise
    if reason is None:
        return None
    return JobFailure(reason, storage.message_of(reason, str(path.parent)))


def start_process(
    module: str, spec_path: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a job; its standard error is appended to the log beside its specification."""
    with (spec_path.parent / LOG_NAME).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(spec_path)],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )


def environment(patience_seconds: float = 10.0) -> dict[str, str]:
    """What a job's process is told by its environment: its trace, its service."""
    own = {
        telemetry.TRACEPARENT_VARIABLE: telemetry.current_traceparent(),
        PARENT_VARIABLE: str(os.getpid()),
        SERVICE_VARIABLE: f"{os.getpid()}/{patience_seconds}",
    }
    return {**os.environ, **own}


def _read_messages(
    process: subprocess.Popen[bytes], on_message: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    assert process.stdout is not None
    last: dict[str, Any] = {}
    for line in process.stdout:
        message = _parse(line)
        if message is None:
            # What a library prints while it is imported, before the job took its output over.
            LOG.debug("a job wrote a line that is no message: %r", line[:200])
        elif message["kind"] == "result" or (message["kind"] == "error" and not last):
            last = message
        elif message["kind"] == "error":
            # Of several processes of one job, the first to fail says why; the rest miss it.
            LOG.info("a job failed further: %s: %s", message["reason"], message["message"])
        else:
            on_message(message)
    return last


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "kind" in message else None


def _end_when(
    process: subprocess.Popen[bytes], stop: threading.Event, ended: threading.Event
) -> None:
    while not ended.wait(0.1):
        if stop.is_set():
            _signal_group(process, signal.SIGTERM)
            if not ended.wait(_JOB_GRACE_SECONDS):
                _signal_group(process, signal.SIGKILL)
            return


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # it has ended already


def _outcome(last: dict[str, Any], returncode: int, log: Path) -> JobOutcome:
    if last.get("kind") == "result" and returncode == 0:
        return JobResult({key: value for key, value in last.items() if key != "kind"})
    if last.get("kind") == "error":
        return JobFailure(last["reason"], last["message"])
    if storage.is_full(log.parent):
        # Its launcher, or a library, found no room even to say so.
        return JobFailure(storage.FULL, storage.message_of(storage.FULL, str(log.parent)))
    tail = " | ".join(_last_lines(log))
    return JobFailure("CRASHED", f"the job {_ending(returncode)}: {tail}")


def _ending(returncode: int) -> str:
    if returncode == -signal.SIGKILL:
        return "was killed (SIGKILL), as the kernel does with the largest when memory runs out"
    if returncode < 0:
        return f"was ended by signal {-returncode} ({signal.strsignal(-returncode)})"
    return f"ended with status {returncode}"


def _last_lines(log: Path, count: int = 3) -> Sequence[str]:
    return log.read_text(errors="replace").strip().splitlines()[-count:]
