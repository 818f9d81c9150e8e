"""The worker's part, with a job that is played."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compressor_builders import GATE

import millrace_compressor
from millrace_compressor.compression_run import CompressionCrashed, CompressionRunner
from millrace_compressor.domain import (
    MAXIMUM_ATTEMPTS,
    Checkpoint,
    Compression,
    Content,
    Failure,
    GatePolicy,
    Order,
    State,
    Target,
)
from millrace_compressor.events import FactRecorder
from millrace_compressor.schema import OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_runtime import manifest, storage
from millrace_runtime.content import ContentStore
from millrace_runtime.database import migrate, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped
from millrace_testkit.clock import FakeClock

MIGRATIONS = Path(millrace_compressor.__file__).parent / "migrations"
EXACT = "TASK_METRIC_EXACT_MATCH"
MEASURED = {"original_perplexity": 10.0, "artifact_perplexity": 10.1, "int8_share": 1.0}


class Bench:
    """A store, a content store with one checkpoint, and a runner whose job is ``play``."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.content = ContentStore(str(folder / "data"), folder / "cache")
        self.clock = clock
        self.play: Callable[[dict[str, Any]], JobOutcome] = self.finish
        database = open_database(f"sqlite:///{folder}/compressor.db")
        migrate(database, MIGRATIONS)
        self.store = CompressionStore(
            database, FactRecorder(Outbox(OUTBOX)), owner="a", lease_seconds=10, now=clock
        )
        self.runner = CompressionRunner(
            self.store,
            self.content,
            scratch=folder / "scratch",
            threads=1,
            evaluation_tokens=16,
            ring=lambda: None,
            llm_compressor_python=Path("environment/bin/python"),
            run_job=self._run_job,
            now=clock,
        )
        committed = self._commit("checkpoint")
        found = Checkpoint("tenants/a/runs/r/checkpoints/c", "demo", 1, True, committed, committed)
        self.id = self.store.add(Order("acme", found, Target.OPENVINO_INT8, GATE)).id

    def _commit(self, name: str) -> Content:
        target = self.content.working_path(name)
        temporary = manifest.temporary_sibling(target)
        (temporary / "weights").write_bytes(b"1234")
        digest = manifest.commit(temporary, target, name, {})
        return Content(self.content.publish(target), digest, 4)

    def _run_job(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        on_message(
            {"kind": "progress", "phase": "convert", "completed": 0, "total": 4, "metrics": {}}
        )
        return self.play(spec)

    def finish(self, spec: dict[str, Any], **measured: float) -> JobOutcome:
        made = self._commit(f"artifacts/{spec['compression_id']}")
        return JobResult(
            {
                "artifact_path": spec["artifact_path"],
                "artifact_digest": made.digest,
                "size_bytes": 4,
                "measurements": MEASURED | measured,
            }
        )

    def perform(self) -> Compression:
        lease = self.store.claim()
        assert lease is not None
        self.runner.perform(lease, threading.Event())
        return self.now()

    def now(self) -> Compression:
        found = self.store.get("acme", self.id)
        assert found is not None
        return found


@pytest.fixture
def bench(tmp_path: Path, clock: FakeClock) -> Bench:
    return Bench(tmp_path, clock)


def test_a_good_artifact_passes(bench: Bench) -> None:
    done = bench.perform()
    assert done.state == State.SUCCEEDED
    assert done.verdict
    assert done.verdict.passed
    assert done.artifact
    assert bench.content.directory(done.artifact.uri, done.artifact.digest).is_dir()
    assert done.progress.phase == "convert"


def test_a_job_is_told_where_llm_compressor_is(bench: Bench) -> None:
    told: list[str] = []

    def play(spec: dict[str, Any]) -> JobOutcome:
        told.append(spec["llm_compressor_python"])
        return bench.finish(spec)

    bench.play = play
    bench.perform()
    assert told == [str(Path.cwd() / "environment/bin/python")]


def named_task(bench: Bench) -> tuple[Path, dict[str, Any]]:
    """A compression that names a file as its task."""
    path = bench.content.working_path("files/abc")
    path.write_bytes(b"{}")
    digest = manifest.sha256_file(path)
    content = {"uri": bench.content.publish(path), "digest": digest, "size_bytes": "2"}
    task = {"file": "tenants/acme/files/file-1", "content": content, "metric": EXACT, "seed": "3"}
    committed = bench._commit("other")
    found = Checkpoint("tenants/a/runs/r/checkpoints/d", "demo", 2, True, committed, committed)
    order = Order("acme", found, Target.OPENVINO_INT8, GatePolicy(min_task_score=0.5), task=task)
    bench.perform()
    bench.id = bench.store.add(order).id
    return path, {"path": str(path), "digest": digest, "metric": EXACT, "seed": "3"}


def test_a_job_is_told_where_its_task_is_and_what_nobody_measured_does_not_pass(
    bench: Bench,
) -> None:
    specs: list[dict[str, Any]] = []

    def play(spec: dict[str, Any]) -> JobOutcome:
        specs.append(spec)
        return bench.finish(spec)

    bench.play = play
    _, told = named_task(bench)
    done = bench.perform()
    assert "task" not in specs[0]
    assert specs[1]["task"] == {**told, "file": "tenants/acme/files/file-1"}
    assert done.verdict and not done.verdict.passed
    assert done.verdict.reasons == ("task score was not measured, and at least 0.5 is asked for",)


def test_a_task_whose_file_is_gone_fails_by_its_name(bench: Bench) -> None:
    path, _ = named_task(bench)
    path.unlink()
    done = bench.perform()
    assert done.failure
    assert done.failure.reason == "TASK_DATA_MISSING"
    assert done.failure.message.startswith("file-1, by which the artifact was to be measured")


def test_a_worse_one_is_rejected_with_the_figures(bench: Bench) -> None:
    bench.play = lambda spec: bench.finish(spec, artifact_perplexity=12.0)
    done = bench.perform()
    assert done.state == State.SUCCEEDED
    assert done.verdict
    assert done.verdict.reasons == ("perplexity increase is 0.2, more than 0.02",)


def test_what_the_job_says_is_wrong_is_final(bench: Bench) -> None:
    bench.play = lambda spec: JobFailure("QUANTIZATION_SKIPPED", "only 3 % are in 8 bits")
    done = bench.perform()
    assert done.state == State.FAILED
    assert done.failure
    assert done.failure.reason == "QUANTIZATION_SKIPPED"


def test_a_crash_is_tried_three_times(bench: Bench) -> None:
    bench.play = lambda spec: JobFailure("CRASHED", "status 9")
    for _ in range(2):
        with pytest.raises(CompressionCrashed):
            bench.perform()
        assert bench.now().state == State.RUNNING
        bench.clock.advance(11)
    assert bench.perform().state == State.FAILED


def test_a_compression_waits_for_the_disk_as_long_as_it_takes(bench: Bench) -> None:
    bench.play = lambda spec: JobFailure("STORAGE_FULL", "the disk is full")
    for _ in range(MAXIMUM_ATTEMPTS + 2):
        waiting = bench.perform()
        assert waiting.state == State.RUNNING
        assert waiting.failure == Failure("STORAGE_FULL", "the disk is full")
        assert bench.store.claim() is None
        bench.clock.advance(storage.RETRY_WAIT.total_seconds() + 1)
    bench.play = bench.finish
    done = bench.perform()
    assert (done.state, done.failure) == (State.SUCCEEDED, None)


def test_a_damaged_checkpoint_is_never_compressed(bench: Bench) -> None:
    (bench.content.working_path("checkpoint") / "weights").write_bytes(b"1235")
    done = bench.perform()
    assert done.state == State.FAILED
    assert done.failure
    assert done.failure.reason == "CONTENT_DAMAGED"
    assert "weights differs" in done.failure.message


def test_draining_leaves_it_to_the_next(bench: Bench) -> None:
    bench.play = lambda spec: JobStopped()
    assert bench.perform().state == State.RUNNING
    bench.clock.advance(11)
    bench.play = bench.finish
    assert bench.perform().state == State.SUCCEEDED
