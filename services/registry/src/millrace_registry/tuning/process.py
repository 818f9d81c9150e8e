"""The process that a search is carried out in (``job.py``), as its service sees it."""

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

from millrace_registry.triton import TritonUnavailable
from millrace_registry.tuning.order import ORDER, Order
from millrace_registry.tuning.trial_model import TrialModel

LOG = logging.getLogger(__name__)

_END_SECONDS = 10.0
_LOOK_SECONDS = 0.2

News = Mapping[str, Any]
Run = Callable[[Order, threading.Event, TrialModel], Generator[News, None, None]]


def run_job(order: Order, stop: threading.Event, model: TrialModel) -> Generator[News, None, None]:
    """The job's lines, until it ends or ``stop`` is set; it is ended, and its model taken out,
    when this generator is closed."""
    command = [sys.executable, "-m", "millrace_registry.tuning.job"]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdin is not None
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(job, lines), daemon=True).start()
    try:
        job.stdin.write(ORDER.dump_json(order) + b"\n")
        job.stdin.flush()
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=_LOOK_SECONDS)
                if not line:
                    return
                yield json.loads(line)
    finally:
        _end(job, model)


def _read(job: "subprocess.Popen[bytes]", lines: "queue.Queue[bytes]") -> None:
    assert job.stdout is not None
    for line in job.stdout:
        lines.put(line)
    status = job.wait()
    if status < 0:
        lines.put(json.dumps({"kind": "error", "message": f"signal {-status}"}).encode())
    lines.put(b"")


def _end(job: "subprocess.Popen[bytes]", model: TrialModel) -> None:
    assert job.stdin is not None
    with contextlib.suppress(OSError):
        job.stdin.close()
    try:
        job.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    try:
        model.unload()
    except TritonUnavailable as error:
        LOG.warning("the model on trial is left to the controller: %s", error)
