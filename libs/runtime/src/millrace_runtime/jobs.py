"""The contract between a service and its job subprocesses, seen from inside the job.

A job is a module run as ``python -m millrace_<stage>.jobs.<verb> SPEC.json``. It reads its
specification from that file, does one long piece of work, and speaks to its service in JSON
lines on standard output, one object a line, told apart by ``kind``:

``progress``
    ``{"kind": "progress", "phase": str, "completed": int, "total": int, "metrics": {str: float}}``
``checkpoint``
    something durable was committed; the fields are the job's own
``result``
    the last word of a job that succeeded; the fields are the job's own
``error``
    ``{"kind": "error", "reason": "UPPER_SNAKE", "message": str}``; the last word of one that failed

Everything else a library prints goes to standard error, which the service keeps as the log.
Exit status 0 means that ``result`` was written, 1 that ``error`` was, anything else is a crash.

    JobError
    └── raised by a job for a mistake its user can put right (bad data, bad setting)
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from opentelemetry import trace
from pydantic import BaseModel, ValidationError

from millrace_runtime import telemetry

PARENT_VARIABLE = "MILLRACE_JOB_PARENT"
"""Names the process id of whoever starts a job, which a job checks once it dies with its parent."""

_PR_SET_PDEATHSIG = 1  # prctl(2)

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


def claim_stdout() -> TextIO:
    """Take standard output for the protocol and send everybody else's prints to stderr."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return protocol


def run(name: str, spec_type: type[SpecT], work: Callable[[SpecT, Reporter], None]) -> None:
    """Run ``work`` as the job ``name`` and exit the process.

    ``name`` is ``<stage>.<verb>`` and becomes the span's name. The span is a child of the
    ``TRACEPARENT`` that the service put in the environment, so the work stays in its trace.
    """
    die_with_parent()
    reporter = Reporter(claim_stdout())
    stop_tracing = telemetry.start_tracing(f"millrace-{name.split('.')[0]}-job")
    tracer = trace.get_tracer("millrace.jobs")
    try:
        with tracer.start_as_current_span(f"job {name}", context=telemetry.context_from_environ()):
            work(spec_type.model_validate_json(Path(sys.argv[1]).read_bytes()), reporter)
        status = 0
    except ValidationError as error:
        status = _fail(reporter, "INVALID_SPEC", str(error))
    except JobError as error:
        status = _fail(reporter, error.reason, str(error))
    except Exception as error:  # the job's outermost frame: report, then fail
        traceback.print_exc(file=sys.stderr)
        status = _fail(reporter, "INTERNAL", f"{type(error).__name__}: {error}")
    stop_tracing()
    sys.stderr.flush()
    os._exit(status)  # torch and OpenVINO may hold threads that never end


def _fail(reporter: Reporter, reason: str, message: str) -> int:
    reporter.report("error", reason=reason, message=message)
    return 1
