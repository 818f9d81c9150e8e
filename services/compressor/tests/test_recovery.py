"""The three steps of a pruning that is recovered, with a tuner that is played."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from compressor_builders import GATE

import millrace_compressor
from millrace_compressor.app import CompressorApp
from millrace_compressor.compression_run import (
    JOB_MODULE,
    PRUNE_MODULE,
    RECOVERY_WAIT,
    CompressionRunner,
)
from millrace_compressor.domain import (
    Checkpoint,
    Compression,
    Content,
    Failure,
    Order,
    Progress,
    State,
    Target,
)
from millrace_compressor.events import FactRecorder
from millrace_compressor.recovery import Recovery, Student, is_wanted
from millrace_compressor.schema import OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_runtime import manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.database import migrate, open_database
from millrace_runtime.errors import Unavailable
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobFailure, JobOutcome, JobResult
from millrace_testkit.clock import FakeClock

MIGRATIONS = Path(millrace_compressor.__file__).parent / "migrations"
MEASURED = {"original_perplexity": 10.0, "artifact_perplexity": 10.1}
JOB = "tenants/acme/jobs/ftjob-1"


@dataclass
class FakeTuner:
    """One job a compression, which goes on as the test says."""

    is_down: bool = False
    jobs: dict[str, Recovery] = field(default_factory=dict)
    students: list[Student] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def find(self, compression: Compression) -> Recovery | None:
        self._require_up()
        return self.jobs.get(compression.id)

    def start(self, compression: Compression, student: Student) -> Recovery:
        self._require_up()
        self.students.append(student)
        made = Recovery(JOB, compression.id, compression.tenant, Progress("recover"))
        return self.jobs.setdefault(compression.id, made)

    def unfinished(self) -> Iterable[Recovery]:
        self._require_up()
        return [job for job in self.jobs.values() if not (job.checkpoint or job.failure)]

    def cancel(self, found: Recovery) -> None:
        self.cancelled.append(found.job)
        stopped = Failure("RECOVERY_FAILED", "it was cancelled")
        self.jobs[found.compression] = replace(found, failure=stopped)

    def change(self, **changes: Any) -> None:
        self.jobs = {id: replace(job, **changes) for id, job in self.jobs.items()}

    def _require_up(self) -> None:
        if self.is_down:
            raise Unavailable("no tuner", reason="UPSTREAM_ERROR")


class Nobody:
    """Neither deployments nor finished checkpoints."""

    def match(self, tenant: str, checkpoint: Checkpoint) -> list[Any]:
        return []

    def all(self) -> list[Any]:
        return []


class Bench:
    """A store, contents, a runner whose jobs are played, and the service's use cases."""

    def __init__(self, folder: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.tuner = FakeTuner()
        self.content = ContentStore(str(folder / "data"), folder / "cache")
        self.ran: list[str] = []
        self.specs: list[Mapping[str, Any]] = []
        self.outcomes: dict[str, Callable[[Mapping[str, Any]], JobOutcome]] = {
            PRUNE_MODULE: self._prune,
            JOB_MODULE: self._finish,
        }
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
            recoveries=self.tuner,
            recovery_tokens=4096,
            run_job=self._run_job,
            now=clock,
        )
        nobody = Nobody()
        self.app = CompressorApp(
            self.store, nobody, nobody, ring_workers=lambda: None, recoveries=self.tuner
        )
        committed = self.commit("checkpoint")
        found = Checkpoint("tenants/a/runs/r/checkpoints/c", "demo", 1, True, committed, committed)
        recipe = {"pruning": {"depth": 0.25, "recovery": True}}
        order = Order("acme", found, Target.SAFETENSORS_PRUNED, GATE, recipe=recipe)
        self.id = self.store.add(order).id

    def commit(self, name: str) -> Content:
        target = self.content.working_path(name)
        temporary = manifest.temporary_sibling(target)
        (temporary / "weights").write_bytes(name.encode())
        digest = manifest.commit(temporary, target, "content", {})
        return Content(self.content.publish(target), digest, 4)

    def _run_job(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        self.ran.append(module)
        self.specs.append(spec)
        return self.outcomes[module](spec)

    def _prune(self, spec: Mapping[str, Any]) -> JobOutcome:
        path = Path(spec["student_path"])
        made = self.commit(f"artifacts/{path.parent.name}/{path.name}")
        told = {"student_path": str(path), "student_digest": made.digest}
        return JobResult({**told, "size_bytes": 4, "windows": 8})

    def _finish(self, spec: Mapping[str, Any]) -> JobOutcome:
        made = self.commit(f"artifacts/{spec['compression_id']}")
        told = {"artifact_path": spec["artifact_path"], "artifact_digest": made.digest}
        return JobResult({**told, "size_bytes": 4, "measurements": MEASURED})

    def perform(self) -> Compression:
        """What the worker does, once whoever waits has waited."""
        self.clock.advance(RECOVERY_WAIT.total_seconds() + 1)
        lease = self.store.claim()
        assert lease is not None
        self.runner.perform(lease, threading.Event())
        return self.now()

    def now(self) -> Compression:
        return self.app.get("acme", self.id)


@pytest.fixture
def bench(tmp_path: Path, clock: FakeClock) -> Bench:
    return Bench(tmp_path, clock)


def test_it_prunes_has_it_recovered_and_finishes(bench: Bench) -> None:
    waiting = bench.perform()
    assert (waiting.state, waiting.progress.phase) == (State.RUNNING, "recover")
    assert bench.store.claim() is None  # others have the worker meanwhile
    (student,) = bench.tuner.students
    assert bench.content.directory(student.content.uri, student.content.digest).is_dir()
    assert (student.windows, bench.specs[0]["recovery_tokens"]) == (8, 4096)
    bench.tuner.change(progress=Progress("recover", 5, 20, {"train_loss": 2.5}))
    assert bench.perform().progress == Progress("recover", 5, 20, {"train_loss": 2.5})
    learned = bench.commit("tuning/acme/ftjob-1/checkpoint")
    bench.tuner.change(checkpoint=learned)
    done = bench.perform()
    assert done.state == State.SUCCEEDED and done.verdict and done.verdict.passed
    assert bench.ran == [PRUNE_MODULE, JOB_MODULE]
    assert bench.specs[1]["recovered_digest"] == learned.digest
    assert bench.specs[1]["recovery_job"] == JOB
    assert not Path(bench.specs[0]["student_path"]).exists()


def test_who_takes_it_up_after_a_crash_finds_the_job(bench: Bench) -> None:
    def die(spec: Mapping[str, Any]) -> JobOutcome:
        raise KeyboardInterrupt  # as near to SIGKILL as a test in one process comes

    bench.outcomes[JOB_MODULE], finish = die, bench.outcomes[JOB_MODULE]
    bench.perform()
    bench.tuner.change(checkpoint=bench.commit("learned"))
    with pytest.raises(KeyboardInterrupt):
        bench.perform()
    bench.outcomes[JOB_MODULE] = finish
    bench.clock.advance(11)
    assert bench.perform().state == State.SUCCEEDED
    assert len(bench.tuner.students) == 1 and bench.ran.count(PRUNE_MODULE) == 1


def test_a_crash_before_the_job_is_made_makes_one_job(bench: Bench) -> None:
    start = bench.tuner.start

    def die(compression: Compression, student: Student) -> Recovery:
        start(compression, student)
        raise KeyboardInterrupt  # the answer never came

    bench.tuner.start = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.perform()
    bench.clock.advance(11)
    assert bench.perform().progress.phase == "recover"
    assert len(bench.tuner.jobs) == 1 and bench.ran == [PRUNE_MODULE]


def test_it_waits_for_a_tuner_that_does_not_answer(bench: Bench) -> None:
    bench.tuner.is_down = True
    for _ in range(5):
        waiting = bench.perform()
        assert waiting.state == State.RUNNING
        assert waiting.failure is not None and waiting.failure.reason == "TUNER_UNAVAILABLE"
    bench.tuner.is_down = False
    assert bench.perform().failure is None


def test_without_what_was_recovered_there_is_no_artifact(bench: Bench) -> None:
    bench.perform()
    bench.tuner.change(failure=Failure("RECOVERY_FAILED", "it diverged"))
    done = bench.perform()
    assert (done.state, done.failure) == (
        State.FAILED,
        Failure("RECOVERY_FAILED", "it diverged"),
    )


def test_pruning_that_fails_asks_for_no_job(bench: Bench) -> None:
    bench.outcomes[PRUNE_MODULE] = lambda spec: JobFailure("PRUNING_SKIPPED", "too small")
    assert bench.perform().state == State.FAILED
    assert not bench.tuner.jobs


def test_a_damaged_recovery_is_never_used(bench: Bench) -> None:
    bench.perform()
    bench.tuner.change(checkpoint=bench.commit("learned"))
    (bench.content.working_path("learned") / "weights").write_bytes(b"other")
    done = bench.perform()
    assert done.failure is not None and done.failure.reason == "CONTENT_DAMAGED"


def test_cancelling_it_cancels_the_job(bench: Bench) -> None:
    bench.perform()
    assert bench.app.cancel("acme", bench.id).state == State.CANCELLED
    assert bench.tuner.cancelled == [JOB]
    bench.app.reconcile()
    assert bench.tuner.cancelled == [JOB]


def test_what_could_not_be_cancelled_then_is_cancelled_later(bench: Bench) -> None:
    bench.perform()
    bench.tuner.is_down = True
    assert bench.app.cancel("acme", bench.id).state == State.CANCELLED
    assert not bench.tuner.cancelled
    bench.tuner.is_down = False
    bench.app.reconcile()
    assert bench.tuner.cancelled == [JOB]


def test_a_job_that_is_waited_for_goes_on(bench: Bench) -> None:
    bench.perform()
    bench.app.reconcile()
    assert not bench.tuner.cancelled


def test_only_pruning_is_recovered(bench: Bench) -> None:
    order = bench.now().order
    assert is_wanted(order)
    assert not is_wanted(replace(order, recipe={"pruning": {"depth": 0.25}}))
    assert not is_wanted(replace(order, target=Target.OPENVINO_INT8))
