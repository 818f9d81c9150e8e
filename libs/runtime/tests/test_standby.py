"""A job's process that waits, all that it imports being imported."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace_runtime.standby import Standby
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped
from millrace_testkit.servers import wait_until

JOB = """
import os, sys, time
from pydantic import BaseModel
from millrace_runtime import jobs

STARTED = time.monotonic()

class Spec(BaseModel):
    mode: str

def work(spec: Spec, reporter: jobs.Reporter) -> None:
    print("noise from a library")
    if spec.mode == "mistake":
        raise jobs.JobError("BAD_DATA", "line 3 is empty")
    if spec.mode == "endless":
        reporter.report("progress")
        time.sleep(60)
    trace = os.environ["TRACEPARENT"]
    reporter.report("result", process=os.getpid(), argument=sys.argv[1], traceparent=trace)

if __name__ == "__main__":
    jobs.run("test.job", Spec, work)
"""
TRACE = "00-11111111111111111111111111111111-2222222222222222-01"


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standby]:
    (tmp_path / "waiting_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Standby("waiting_job")
    yield made
    made.close()


def run(standby: Standby, folder: Path, mode: str = "good", **more: Any) -> JobOutcome:
    stop = more.get("stop", threading.Event())
    hear = more.get("hear", lambda message: None)
    return standby.run_job("waiting_job", {"mode": mode}, folder, hear, stop)


def waiting(standby: Standby) -> int:
    process = standby._waiting
    assert process is not None
    return process.pid


def test_the_second_job_is_done_by_a_process_that_was_there(
    standby: Standby, tmp_path: Path
) -> None:
    first = run(standby, tmp_path / "one")
    there = waiting(standby)
    second = run(standby, tmp_path / "two")
    assert isinstance(first, JobResult) and isinstance(second, JobResult)
    assert second.fields["process"] == there != first.fields["process"]
    assert second.fields["argument"] == str(tmp_path / "two" / "spec.json")
    assert waiting(standby) != there  # one process does one job
    assert "noise from a library" in (tmp_path / "two" / "job.log").read_text()


def test_the_first_job_that_was_expected_finds_one_too(standby: Standby, tmp_path: Path) -> None:
    thread = threading.Thread(target=standby.run)
    thread.start()
    standby.expect()
    wait_until(lambda: standby._waiting is not None, 10.0, "a process that waits")
    there = waiting(standby)
    outcome = run(standby, tmp_path / "one")
    assert isinstance(outcome, JobResult) and outcome.fields["process"] == there
    standby.drain()
    thread.join(10.0)
    assert not thread.is_alive() and standby._waiting is None


def test_a_job_belongs_to_the_trace_of_its_time(
    standby: Standby, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(standby, tmp_path / "one")
    monkeypatch.setattr("millrace_runtime.telemetry.current_traceparent", lambda: TRACE)
    second = run(standby, tmp_path / "two")
    assert isinstance(second, JobResult) and second.fields["traceparent"] == TRACE


def test_mistakes_and_stops_are_told_as_ever(standby: Standby, tmp_path: Path) -> None:
    run(standby, tmp_path / "one")
    assert run(standby, tmp_path / "two", "mistake") == JobFailure("BAD_DATA", "line 3 is empty")
    stop = threading.Event()
    outcome = run(standby, tmp_path / "three", "endless", stop=stop, hear=lambda _: stop.set())
    assert outcome == JobStopped()


def test_a_process_that_died_while_it_waited_is_not_missed(
    standby: Standby, tmp_path: Path
) -> None:
    run(standby, tmp_path / "one")
    there = waiting(standby)
    os.kill(there, signal.SIGKILL)
    outcome = run(standby, tmp_path / "two")
    assert isinstance(outcome, JobResult) and outcome.fields["process"] != there


def test_it_is_let_go_when_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waiting_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    standby = Standby("waiting_job", idle_seconds=0.0)
    run(standby, tmp_path / "one")
    wait_until(lambda: standby._waiting is None, 10.0, "the process that waits to be let go")
    assert isinstance(run(standby, tmp_path / "two"), JobResult)
    standby.close()
