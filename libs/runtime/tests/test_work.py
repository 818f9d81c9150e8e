"""Workers and the job subprocesses they run."""

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from millrace_runtime.jobs import PARENT_VARIABLE
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.work import JobFailure, JobResult, JobStopped, Worker, run_job
from millrace_testkit.clock import FakeClock
from millrace_testkit.servers import wait_until

JOB = """
import sys, time
from pydantic import BaseModel
from millrace_runtime import jobs

class Spec(BaseModel):
    mode: str

def work(spec: Spec, reporter: jobs.Reporter) -> None:
    print("noise from a library")
    reporter.progress("count", 1, 2, {"loss": 0.5})
    if spec.mode == "mistake":
        raise jobs.JobError("BAD_DATA", "line 3 is empty")
    if spec.mode == "bug":
        raise ZeroDivisionError("oops")
    if spec.mode == "crash":
        import os
        os._exit(9)
    if spec.mode == "killed":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.mode == "two ranks":
        reporter.report("error", reason="DATASET_DAMAGED", message="what the second rank found")
        raise ConnectionError("what the first then met")
    if spec.mode == "endless":
        time.sleep(60)
    if spec.mode == "priority":
        import os, pathlib
        session = pathlib.Path("/proc/self/autogroup")
        told = session.read_text().split() if session.exists() else ["nice", "7"]
        reporter.report("result", process=os.getpriority(os.PRIO_PROCESS, 0), session=told[-1])
        return
    reporter.report("result", answer=42)

if __name__ == "__main__":
    jobs.run("test.job", Spec, work)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sample_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "sample_job"


def run(job: str, folder: Path, mode: str, stop: threading.Event | None = None) -> Any:
    messages: list[dict[str, Any]] = []
    outcome = run_job(job, {"mode": mode}, folder, messages.append, stop or threading.Event())
    return outcome, messages


def test_a_job_reports_and_its_result_comes_back(job: str, tmp_path: Path) -> None:
    outcome, messages = run(job, tmp_path, "good")
    assert outcome == JobResult({"answer": 42})
    assert messages == [
        {
            "kind": "progress",
            "phase": "count",
            "completed": 1,
            "total": 2,
            "metrics": {"loss": 0.5},
        }
    ]
    assert "noise from a library" in (tmp_path / "job.log").read_text()


def test_a_job_gives_way_as_far_as_it_is_told(job: str, tmp_path: Path) -> None:
    outcome = run_job(
        job, {"mode": "priority"}, tmp_path, lambda message: None, threading.Event(), niceness=7
    )
    assert outcome == JobResult({"process": 7, "session": "7"})


def test_a_users_mistake_keeps_its_reason(job: str, tmp_path: Path) -> None:
    outcome, _ = run(job, tmp_path, "mistake")
    assert outcome == JobFailure("BAD_DATA", "line 3 is empty")


def test_a_bug_is_internal_and_a_death_is_a_crash(job: str, tmp_path: Path) -> None:
    assert run(job, tmp_path, "bug")[0] == JobFailure("INTERNAL", "ZeroDivisionError: oops")
    outcome, _ = run(job, tmp_path, "crash")
    assert outcome.reason == "CRASHED" and "status 9" in outcome.message
    outcome, _ = run(job, tmp_path, "killed")
    assert outcome.reason == "CRASHED" and "was killed (SIGKILL)" in outcome.message


def test_of_several_processes_the_first_to_fail_says_why(job: str, tmp_path: Path) -> None:
    outcome, _ = run(job, tmp_path, "two ranks")
    assert outcome == JobFailure("DATASET_DAMAGED", "what the second rank found")


def test_a_spec_that_does_not_fit_is_said_so(job: str, tmp_path: Path) -> None:
    outcome = run_job(job, {}, tmp_path, lambda message: None, threading.Event())
    assert isinstance(outcome, JobFailure) and outcome.reason == "INVALID_SPEC"


def test_a_job_is_stopped_when_told(job: str, tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    outcome, _ = run(job, tmp_path, "endless", stop)
    assert outcome == JobStopped()


def test_what_a_listener_raises_ends_the_job(job: str, tmp_path: Path) -> None:
    def lose(_message: dict[str, Any]) -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        run_job(job, {"mode": "endless"}, tmp_path, lose, threading.Event())


def test_a_job_dies_with_the_service_that_started_it(job: str, tmp_path: Path) -> None:
    program = (
        "import threading, pathlib\n"
        "from millrace_runtime.work import run_job\n"
        f"run_job({job!r}, {{'mode': 'endless'}}, pathlib.Path({str(tmp_path)!r}),"
        " print, threading.Event())\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert service.stdout is not None
    assert service.stdout.readline()  # the job's first report: it is well under way
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    service.stdout.close()
    wait_until(lambda: not _is_running(int(children[0])), 5, "the job dies")


def test_a_job_does_not_outlast_a_service_that_stands_still(job: str, tmp_path: Path) -> None:
    """Else it would write beside the job of whoever takes the work over."""
    program = (
        "import threading, pathlib\n"
        "from millrace_runtime.work import run_job\n"
        f"run_job({job!r}, {{'mode': 'endless'}}, pathlib.Path({str(tmp_path)!r}),"
        " print, threading.Event(), patience_seconds=0.5)\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert service.stdout is not None
    assert service.stdout.readline()  # the job's first report: it is well under way
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    service.send_signal(signal.SIGSTOP)
    wait_until(lambda: not _is_running(int(children[0])), 10, "the job ends")
    service.kill()
    service.wait()
    service.stdout.close()
    assert "stands still" in (tmp_path / "job.log").read_text()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class OneTask:
    """A work source with one row."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._available = True
        self.lost = False
        self.released = False

    def claim(self) -> Lease | None:
        if not self._available:
            return None
        self._available = False
        return Lease("task-1", 1, self._clock() + timedelta(seconds=10))

    def renew(self, lease: Lease) -> Lease:
        if self.lost:
            raise LeaseLost("cancelled")
        return lease

    def release(self, lease: Lease) -> None:
        self.released = True


def start(worker: Worker) -> threading.Thread:
    thread = threading.Thread(target=worker.run)
    thread.start()
    return thread


def test_work_whose_lease_is_lost_is_told_to_stop(clock: FakeClock) -> None:
    source, stopped = OneTask(clock), threading.Event()
    source.lost = True

    def perform(_lease: Lease, stop: threading.Event) -> None:
        assert stop.wait(10)
        stopped.set()

    worker = Worker("test", source, perform)
    thread = start(worker)
    assert stopped.wait(10)
    worker.drain()
    thread.join(10)


def test_draining_stops_the_work_and_gives_the_row_back(clock: FakeClock) -> None:
    source, started = OneTask(clock), threading.Event()

    def perform(_lease: Lease, stop: threading.Event) -> None:
        started.set()
        assert stop.wait(10)

    worker = Worker("test", source, perform)
    thread = start(worker)
    assert started.wait(10)
    worker.drain()
    thread.join(10)
    assert source.released and not thread.is_alive()


def test_a_worker_outlives_work_that_fails(clock: FakeClock) -> None:
    source, calls = OneTask(clock), []

    def perform(lease: Lease, _stop: threading.Event) -> None:
        calls.append(lease.id)
        source._available = len(calls) < 2
        raise RuntimeError("no luck")

    worker = Worker("test", source, perform)
    thread = start(worker)
    worker.ring()
    wait_until(lambda: len(calls) == 2, 10, "the second try")
    worker.drain()
    thread.join(10)
    assert not thread.is_alive()


def test_work_that_failed_is_given_back_before_its_lease_runs_out(clock: FakeClock) -> None:
    source, calls = OneTask(clock), []

    def perform(lease: Lease, _stop: threading.Event) -> None:
        calls.append(lease.id)
        raise RuntimeError("no luck")

    worker = Worker("test", source, perform, lease_seconds=3600)
    thread = start(worker)
    wait_until(lambda: source.released, 30, "the row is given back")
    assert calls == ["task-1"]
    worker.drain()
    thread.join(10)


def test_a_job_whose_parent_has_gone_before_it_could_ask_ends(job: str, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"mode": "good"}')
    command = [sys.executable, "-m", job, tmp_path / "spec.json"]
    for parent, status in ((os.getpid(), 0), (os.getpid() + 1, -signal.SIGKILL)):
        environment = {**os.environ, PARENT_VARIABLE: str(parent)}
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == status
