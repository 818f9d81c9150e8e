"""One worker of the trainer or the tuner, without the mesh: real store, leases, worker and job.

    python -m tests.chaos.training_service STAGE FOLDER

takes the one piece of work that the database in FOLDER holds to its end, as the service would,
and ends with it. Every line of a job, and when a job begins and ends, is noted in
``FOLDER/heard.jsonl``. Killed and started again, it takes the work over once its lease has ended.
"""

import importlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import select

from millrace_runtime import manifest, work
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, migrate, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobFailure, JobOutcome, Worker
from millrace_trainer import __main__ as trainer_main
from millrace_trainer import domain as trainer_domain
from millrace_trainer import events as trainer_events
from millrace_trainer import schema as trainer_schema
from millrace_trainer.store import RunStore
from millrace_trainer.training import Trainer
from millrace_tuner import __main__ as tuner_main
from millrace_tuner import domain as tuner_domain
from millrace_tuner import events as tuner_events
from millrace_tuner import methods
from millrace_tuner import schema as tuner_schema
from millrace_tuner.attempt import Attempt
from millrace_tuner.store import JobStore

HEARD = "heard.jsonl"
TENANT, ID = "acme", "one"
_LEASE_SECONDS = 3.0
_BACK_OFF_SECONDS = 0.2
_THREADS = 2
_SERVICES = Path(__file__).resolve().parents[2] / "services"


@dataclass(frozen=True)
class Ended:
    """What a finished piece of work left.

    Attributes:
        state: as the database has it, with the reason of a failure.
        facts: how often each was recorded.
        curve: what was measured at each step.
        weights: sha256 of each checkpoint's weights, by step.
    """

    state: str
    facts: Mapping[str, int]
    curve: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    weights: Mapping[int, str] = field(default_factory=dict)


class Stage(Protocol):
    """A service that trains."""

    measured: tuple[str, ...]
    total_steps: int
    interval_steps: int

    def prepare(self) -> None:
        """Write content and the one piece of work, which nothing has begun."""
        ...

    def worker(self, run_job: Callable[..., JobOutcome]) -> Worker: ...
    def is_final(self) -> bool: ...
    def ended(self) -> Ended: ...
    def output_directory(self) -> Path: ...


class TrainerStage:
    """A run of 40 steps, 4 checkpoints and 3.4 epochs."""

    measured = ("loss", "learning_rate", "gradient_norm")
    total_steps = 40
    interval_steps = 10

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self._folder = folder
        self._processes = processes
        self._content = ContentStore(str(folder / "data"), folder / "cache")
        self._database = _open(folder, trainer_main.MIGRATIONS)
        record = trainer_events.FactRecorder(Outbox(trainer_schema.OUTBOX))
        owner = str(os.getpid())
        self._runs = RunStore(self._database, record, owner=owner, lease_seconds=_LEASE_SECONDS)

    def prepare(self) -> None:
        tiny_run = _import_builders("trainer", "tiny_run")
        path, digest = tiny_run.write_dataset(self._folder / "data")
        spec = tiny_run.spec_of((path, digest), Path())
        changed = {
            "processes": self._processes,
            "total_steps": self.total_steps,
            "checkpoint_every_steps": self.interval_steps,
        }
        now = trainer_domain.utc_now()
        run = trainer_domain.Run(
            TENANT,
            ID,
            "demo",
            f"tenants/{TENANT}/datasets/d",
            spec["architecture"],
            {**spec["hyperparameters"], **changed},
            now,
            now,
            "",
            dataset=trainer_domain.Content(path.as_uri(), digest, 1),
        )
        self._runs.add(run, trainer_domain.RequestKey("", ""))

    def worker(self, run_job: Callable[..., JobOutcome]) -> Worker:
        trainer = Trainer(
            self._runs,
            self._content,
            scratch=self._folder / "scratch",
            threads=_THREADS,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=run_job,
            back_off_seconds=_BACK_OFF_SECONDS,
        )
        return Worker("trainer", self._runs, trainer.perform, _LEASE_SECONDS)

    def is_final(self) -> bool:
        return self._run().state.is_final

    def ended(self) -> Ended:
        run = self._run()
        reason = f": {run.failure.reason}: {run.failure.message}" if run.failure else ""
        rows = self._runs.metric_page(ID, 0, 10_000)
        curve = {row.step: {name: row.metrics[name] for name in self.measured} for row in rows}
        checkpoints = self._runs.checkpoint_page(TENANT, ID, "", 1000)
        weights = {c.step: _weights(self._content, c.content) for c in checkpoints}
        facts = _count_facts(self._database, trainer_schema.OUTBOX)
        return Ended(run.state + reason, facts, curve, weights)

    def output_directory(self) -> Path:
        return self._content.working_path(f"runs/{ID}")

    def _run(self) -> trainer_domain.Run:
        run = self._runs.get(TENANT, ID)
        assert run is not None
        return run


class TunerStage:
    """A job of 18 steps and 3 epochs, each with a checkpoint; its adapter has dropout."""

    measured = ("train_loss", "train_accuracy", "learning_rate")
    total_steps = 18
    interval_steps = 6

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._content = ContentStore(str(folder / "data"), folder / "cache")
        self._database = _open(folder, tuner_main.MIGRATIONS)
        record = tuner_events.FactRecorder(Outbox(tuner_schema.OUTBOX))
        owner = str(os.getpid())
        self._jobs = JobStore(self._database, record, owner=owner, lease_seconds=_LEASE_SECONDS)
        self._attempt = self._build_attempt(work.run_job)

    def _build_attempt(self, run_job: Callable[..., JobOutcome]) -> Attempt:
        return Attempt(
            self._jobs,
            _Results(),  # type: ignore[arg-type]  # nothing asks it for a file
            self._content,
            scratch=self._folder / "scratch",
            threads=_THREADS,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=run_job,
            back_off_seconds=_BACK_OFF_SECONDS,
        )

    def prepare(self) -> None:
        builders = _import_builders("tuner", "tuner_builders")
        base = self._content.working_path("base")
        digest = builders.write_base(base)
        examples = self._content.working_path("train.jsonl")
        file_digest = builders.write_jsonl(examples, builders.conversations(48))
        file = tuner_domain.FileReference(
            "tenants/acme/files/f", tuner_domain.Content(examples.as_uri(), file_digest, 1), 48
        )
        plan = tuner_domain.Plan(
            "demo",
            tuner_domain.BaseVersion(
                "v", "demo", 7, tuner_domain.Content(base.as_uri(), digest, 1)
            ),
            file,
            None,
            "",
            7,
            methods.Supervised(),
            methods.Hyperparameters(3, 8, 1.0),
            methods.Adapter(rank=8, alpha=16.0, dropout=0.1),
        )
        now = tuner_domain.utc_now()
        job = tuner_domain.Job(TENANT, ID, plan, "ft:demo:acme::one", now, now, validate_time=now)
        self._jobs.add(job, tuner_domain.RequestKey("", ""))

    def worker(self, run_job: Callable[..., JobOutcome]) -> Worker:
        return Worker("tuner", self._jobs, self._build_attempt(run_job).perform, _LEASE_SECONDS)

    def is_final(self) -> bool:
        job = self._job()
        return job.trained_time is not None or job.state in tuner_domain.FINISHED

    def ended(self) -> Ended:
        job = self._job()
        reason = f": {job.failure.reason}: {job.failure.message}" if job.failure else ""
        checkpoints = self._jobs.checkpoints(TENANT, ID, "", 1000)
        weights = {c.step: _weights(self._content, c.content) for c in checkpoints}
        facts = _count_facts(self._database, tuner_schema.OUTBOX)
        return Ended(job.state + reason, facts, self._curve(), weights)

    def _curve(self) -> dict[int, dict[str, float]]:
        """Of the metrics file; a validation stands beside the step that it follows."""
        curve: dict[int, dict[str, float]] = {}
        path = self.output_directory() / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
            measured = json.loads(line)
            known = curve.setdefault(measured.pop("step"), {})
            assert not known.keys() & measured.keys(), f"told twice: {line}"
            known.update(measured)
        return curve

    def output_directory(self) -> Path:
        return self._attempt.output_directory(self._job())

    def _job(self) -> tuner_domain.Job:
        job = self._jobs.get(TENANT, ID)
        assert job is not None
        return job


class _Results:
    """In place of the data service: takes a job's result file."""

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        return f"tenants/{tenant}/files/{filename}"


def open_stage(name: str, folder: Path) -> Stage:
    """``trainer``, ``two-ranks`` or ``tuner``."""
    if name == "tuner":
        return TunerStage(folder)
    return TrainerStage(folder, processes=2 if name == "two-ranks" else 1)


def noted(path: Path) -> Callable[..., JobOutcome]:
    """``work.run_job``, with everything that is heard noted at ``path``."""

    def note(document: dict[str, Any]) -> None:
        line = json.dumps({**document, "time": time.time()}) + "\n"
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())  # one write: a kill leaves whole lines

    def run_job(
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        def hear(message: dict[str, Any]) -> None:
            note(message)
            on_message(message)

        note({"kind": "begin"})
        each_step = {"report_seconds": 0.0} if "run_id" in spec else {}
        outcome = work.run_job(module, {**spec, **each_step}, directory, hear, stop)
        said = f"{outcome.reason}: {outcome.message}" if isinstance(outcome, JobFailure) else ""
        note({"kind": "end", "outcome": type(outcome).__name__, "said": said})
        return outcome

    return run_job


def serve(stage: Stage, folder: Path) -> None:
    """Work until the one piece of work is done."""
    worker = stage.worker(noted(folder / HEARD))
    thread = threading.Thread(target=worker.run)
    thread.start()
    while not stage.is_final():
        time.sleep(0.1)
    worker.drain()
    thread.join()


def _open(folder: Path, migrations: Path) -> Database:
    folder.mkdir(parents=True, exist_ok=True)
    database = open_database(f"sqlite:///{folder}/service.db")
    migrate(database, migrations)
    return database


def _import_builders(stage: str, module: str) -> Any:
    """What the stage's own tests build their small models and data with."""
    tests = str(_SERVICES / stage / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module(module)


def _weights(content: ContentStore, at: Any) -> str:
    """sha256 of the safetensors of a checkpoint, every byte of which is verified before."""
    model = content.directory(at.uri, at.digest) / "model"
    digests = [manifest.sha256_file(path) for path in sorted(model.glob("*.safetensors"))]
    return manifest.sha256_bytes("".join(digests).encode())


def _count_facts(database: Database, outbox: Any) -> Counter[str]:
    with database.transaction() as connection:
        return Counter(connection.execute(select(outbox.c.subject)).scalars())


if __name__ == "__main__":
    serve(open_stage(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[2]))
