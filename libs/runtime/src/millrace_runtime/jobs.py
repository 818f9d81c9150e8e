"""The contract between a service and its job subprocesses, seen from inside the job.

A job is a module run as ``python -m millrace_<stage>.jobs.<verb> SPEC.json``. It reads its
specification from that file, does one long piece of work, and speaks to its service in JSON
lines on standard output, one object a line, told apart by ``kind``:

``progress``
    ``{"kind": "progress", "phase": str, "completed": int, "total": int, "metrics": {str: float}}``
``checkpoint``, ``state``
    something durable was committed, for others or for the job to resume from; the fields are the
    job's own
``result``
    the last word of a job that succeeded; the fields are the job's own
``error``
    ``{"kind": "error", "reason": "UPPER_SNAKE", "message": str}``; the last word of one that failed

Everything else a library prints goes to standard error, which the service keeps as the log.
Exit status 0 means that ``result`` was written, 1 that ``error`` was, anything else is a crash.
A full or failing disk is said as STORAGE_FULL or STORAGE_ERROR, wherever it was met.

    JobError
    └── raised by a job for a mistake its user can put right (bad data, bad setting)
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from opentelemetry import trace
from pydantic import BaseModel, ValidationError

from millrace_runtime import storage, telemetry

STANDBY = "--standby"
"""Instead of a specification's path: it comes later, on standard input."""
TAKEN = b"millrace: the job is taken\n"
LOG_NAME = "job.log"
PARENT_VARIABLE = "MILLRACE_JOB_PARENT"
"""Names the process id of whoever starts a job, which a job checks once it dies with its parent."""

SERVICE_VARIABLE = "MILLRACE_JOB_SERVICE"
"""``<process id>/<seconds>``: the service that a job works for, and how long a job waits for one
that stands still."""

NICENESS_VARIABLE = "MILLRACE_JOB_NICENESS"
"""How far a job gives way to others on the same CPUs, 0 to 19 (nice(2)); unset: not at all."""

_PR_SET_PDEATHSIG = 1  # prctl(2)
_ABANDONED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: it may well work when it is tried again

SpecT = TypeVar("SpecT", bound=BaseModel)


class JobError(Exception):
    """A failure that the job's user can understand and put right.

    Attributes:
        reason: UPPER_SNAKE identifier, stable across releases (as google.rpc.ErrorInfo.reason).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Reporter:
    """Writes a job's JSON lines. Each line is flushed: what was reported was read or can be."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def report(self, kind: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._stream.flush()

    def progress(
        self, phase: str, completed: int, total: int, metrics: dict[str, float] | None = None
    ) -> None:
        """Say how far ``phase`` has come; both counts are in the phase's own unit."""
        self.report(
            "progress", phase=phase, completed=completed, total=total, metrics=metrics or {}
        )


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux prctl).

    A killed service must leave no job behind: its successor starts the job again under a
    higher epoch, and two writers would race.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)  # the parent died before prctl took effect


def end_when_abandoned() -> None:
    """End this process when its service has been stopped for long (SIGSTOP, a frozen container).

    The service cannot renew its lease then, and another one takes the work over. A job that
    went on would be a second writer, and one that cannot get rid of its lines would keep the
    lock of its directory for ever.
    """
    service, _, seconds = os.environ.get(SERVICE_VARIABLE, "").partition("/")
    if service:
        watch = threading.Thread(target=_watch, args=(int(service), float(seconds)), daemon=True)
        watch.start()


def _watch(service: int, patience_seconds: float) -> None:
    look_seconds = min(1.0, patience_seconds / 5)
    still_seconds = 0.0
    while still_seconds < patience_seconds:
        time.sleep(look_seconds)
        still_seconds = still_seconds + look_seconds if _stands_still(service) else 0.0
    _log(f"the service (process {service}) stands still; it will not be waited for\n")
    os._exit(_ABANDONED_STATUS)


def _stands_still(process: int) -> bool:
    """Whether a process is stopped (proc(5)); one that has gone is not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def give_way() -> None:
    """Have the kernel prefer others to this process, as far as its service said.

    Linux may weigh sessions before it weighs the processes in each (sched(7): autogroup), and
    each job is a session of its own: so its session gives way too.
    """
    niceness = os.environ.get(NICENESS_VARIABLE)
    if niceness:
        os.setpriority(os.PRIO_PROCESS, 0, int(niceness))
        with contextlib.suppress(OSError):  # this kernel has none, or is told too often
            Path("/proc/self/autogroup").write_text(niceness)


def wait_for_order() -> None:
    """Wait for a job, all that it imports being imported (``standby.py``); end when none comes.

    The order is a line on standard input, ``{"spec": path, "environment": {...}}``; that it was
    taken is said by one on standard output.
    """
    order = sys.stdin.readline()
    if not order:
        os._exit(0)
    told = json.loads(order)
    os.environ.update(told["environment"])
    sys.argv[1] = told["spec"]
    with Path(told["spec"]).with_name(LOG_NAME).open("ab") as log:
        os.dup2(log.fileno(), 2)
    os.write(1, b"\n" + TAKEN)


def claim_stdout() -> TextIO:
    """Take standard output for the protocol and send everybody else's prints to stderr."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return protocol


@contextlib.contextmanager
def storage_fault_is_said(directory: Path) -> Iterator[None]:
    """Call what the block raises by its name if the disk is at fault, whatever it was wrapped in.

    torch's writer says only at which position it stopped, and a rank hears of another's full
    disk only that it has gone: then the disk of ``directory`` itself is looked at. What was
    being written there is removed: it would fill the disk for others, and is of no use.

    Raises:
        JobError: STORAGE_FULL, STORAGE_ERROR.
    """
    try:
        yield
    except Exception as error:
        is_said = isinstance(error, JobError)
        reason = storage.reason_of(error.__cause__ if is_said else error)
        if reason is None and not is_said and storage.is_full(directory):
            reason = storage.FULL
        if reason is None:
            raise
        storage.remove_unfinished(directory)
        _log(traceback.format_exc())
        raise JobError(reason, storage.message_of(reason, str(directory))) from error


def run(
    name: str,
    spec_type: type[SpecT],
    work: Callable[[SpecT, Reporter], None],
    writes_to: Callable[[SpecT], Path] | None = None,
) -> None:
    """Run ``work`` as the job ``name`` and exit the process.

    ``name`` is ``<stage>.<verb>`` and becomes the span's name. The span is a child of the
    ``TRACEPARENT`` that the service put in the environment, so the work stays in its trace.
    ``writes_to`` is the job's own directory, from which what is unfinished is removed when the
    disk is full (without it: that of the specification).
    """
    die_with_parent()
    end_when_abandoned()
    if sys.argv[1] == STANDBY:
        wait_for_order()
    give_way()
    reporter = Reporter(claim_stdout())
    stop_tracing = telemetry.start_tracing(f"millrace-{name.split('.')[0]}-job")
    tracer = trace.get_tracer("millrace.jobs")
    try:
        with tracer.start_as_current_span(f"job {name}", context=telemetry.context_from_environ()):
            path = Path(sys.argv[1])
            with storage_fault_is_said(path.parent):
                spec = spec_type.model_validate_json(path.read_bytes())
            with storage_fault_is_said(writes_to(spec) if writes_to else path.parent):
                work(spec, reporter)
        status = 0
    except ValidationError as error:
        status = _fail(reporter, "INVALID_SPEC", str(error))
    except JobError as error:
        status = _fail(reporter, error.reason, str(error))
    except Exception as error:  # the job's outermost frame: report, then fail
        _log(traceback.format_exc())
        status = _fail(reporter, "INTERNAL", f"{type(error).__name__}: {error}")
    with contextlib.suppress(Exception):  # the last word was said; nothing may take it back
        stop_tracing()
        sys.stderr.flush()
    os._exit(status)  # torch and OpenVINO may hold threads that never end


def _fail(reporter: Reporter, reason: str, message: str) -> int:
    reporter.report("error", reason=reason, message=message)
    return 1


def _log(text: str) -> None:
    """Write to the log, if there is room for it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
