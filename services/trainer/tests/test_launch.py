"""What becomes of the processes of a training job, and of its user's mistakes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_run import spec_of, write_dataset

from millrace_runtime.work import JobFailure, JobOutcome, run_job
from millrace_testkit.servers import wait_until
from millrace_trainer.training import JOB_MODULE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return write_dataset(tmp_path_factory.mktemp("launch"))


def ignore(message: dict[str, Any]) -> None:
    """Nothing is asked of the lines."""


def failure_of(spec: dict[str, Any], folder: Path) -> JobFailure:
    outcome: JobOutcome = run_job(JOB_MODULE, spec, folder, ignore, threading.Event())
    assert isinstance(outcome, JobFailure), outcome
    return outcome


def rank_of(process: psutil.Process) -> str | None:
    """Which rank a process is; None for what is none."""
    try:
        is_rank = "millrace_trainer.jobs.rank" in process.cmdline()
        return process.environ().get("RANK") if is_rank else None
    except psutil.NoSuchProcess:
        return None


def ranks_below(pid: int) -> dict[str, psutil.Process]:
    found = {rank_of(process): process for process in psutil.Process(pid).children(recursive=True)}
    return {rank: process for rank, process in found.items() if rank is not None}


def test_a_rank_dies_with_torchrun_even_while_it_imports(
    dataset: tuple[Path, str], tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec_of(dataset, tmp_path / "output")))
    job = subprocess.Popen([sys.executable, "-m", JOB_MODULE, path], stdout=subprocess.PIPE)
    assert job.stdout is not None
    with job.stdout as lines:
        assert json.loads(lines.readline())["phase"] == "start"
        wait_until(lambda: "0" in ranks_below(job.pid), 20, "the rank")
        processes = psutil.Process(job.pid).children(recursive=True)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        _, alive = psutil.wait_procs(processes, timeout=3)
    assert alive == []
    assert not (tmp_path / "output").exists()  # it had not come so far


def test_a_rank_that_dies_ends_the_job_at_once(dataset: tuple[Path, str], tmp_path: Path) -> None:
    endless = {"processes": 2, "total_steps": 1_000_000}
    spec = spec_of(dataset, tmp_path / "output", hyperparameters=endless)
    killed_at: list[float] = []

    def kill_one(message: dict[str, Any]) -> None:
        if message.get("completed", 0) >= 3 and not killed_at:
            killed_at.append(time.monotonic())
            ranks_below(os.getpid())["1"].kill()

    outcome = run_job(JOB_MODULE, spec, tmp_path, kill_one, threading.Event())
    assert time.monotonic() - killed_at[0] < 5
    assert isinstance(outcome, JobFailure)
    assert outcome.reason == "CRASHED", outcome  # it is tried again
    assert "another rank of the job has gone" in outcome.message
    assert ranks_below(os.getpid()) == {}


def test_a_wrong_specification_is_refused_before_anything_heavy_begins(
    dataset: tuple[Path, str], tmp_path: Path
) -> None:
    spec = spec_of(dataset, tmp_path / "output", hyperparameters={"processes": 3})
    failure = failure_of(spec, tmp_path)
    assert failure.reason == "INVALID_SPEC"
    assert "micro_batch_sequences times processes" in failure.message
    assert list(tmp_path.glob("torchrun-*")) == []


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    path, digest = write_dataset(tmp_path)
    with (path / "train-00000.npy").open("r+b") as shard:
        shard.seek(200)
        shard.write(b"\xff")
    failure = failure_of(spec_of((path, digest), tmp_path / "output"), tmp_path)
    assert failure.reason == "DATASET_DAMAGED"
    assert "train-00000.npy differs from its manifest" in failure.message
    assert '"kind"' not in (tmp_path / "job.log").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; making one takes the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_called_by_its_name_and_left_as_it_was(
    dataset: tuple[Path, str], tmp_path: Path, small_disk: Path
) -> None:
    output = small_disk / "output"
    failure = failure_of(spec_of(dataset, output), tmp_path)
    assert failure.reason == "STORAGE_FULL"
    assert str(output) in failure.message
    assert [path.name for path in output.rglob("*") if path.is_file()] == ["lock"]
