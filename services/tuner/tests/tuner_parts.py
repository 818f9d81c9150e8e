"""The service's parts on a given database, with fakes for what lies outside it."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from millrace_runtime import manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable
from millrace_runtime.leases import Lease
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobOutcome, JobResult
from millrace_testkit.clock import FakeClock
from millrace_tuner.__main__ import MIGRATIONS
from millrace_tuner.app import TunerApp, Wish
from millrace_tuner.attempt import Attempt
from millrace_tuner.domain import (
    BaseVersion,
    Checkpoint,
    Content,
    FileReference,
    Job,
    RequestKey,
)
from millrace_tuner.events import FactRecorder
from millrace_tuner.prompt import Prompt
from millrace_tuner.schema import OUTBOX
from millrace_tuner.serving import Scene
from millrace_tuner.store import JobStore
from millrace_tuner.validation import Validation

LEASE_SECONDS = 15.0
DIGEST = "sha256:" + "1" * 64
COUNTED = {
    "training_examples": 190,
    "training_tokens": 20_000,
    "longest_tokens": 160,
    "truncated_examples": 0,
    "skipped_examples": 0,
    "validation_examples": 0,
}
TRAINING_FILE = "tenants/acme/files/file-train"


class FakeFiles:
    """The data service, without it."""

    def __init__(self) -> None:
        self.files: dict[str, FileReference] = {}
        self.results: dict[str, bytes] = {}
        self.prompts: dict[tuple[str, int], Prompt] = {}
        self.is_away = False

    def training_file(self, name: str, field: str) -> FileReference:
        if name not in self.files:
            raise InvalidArgument(f"there is no file {name}", field=field)
        return self.files[name]

    def prompt(self, name: str, version: int) -> Prompt:
        if (name, version) not in self.prompts:
            raise InvalidArgument(f"there is no prompt {name}", field="prompt.prompt")
        return self.prompts[name, version]

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        if self.is_away:
            raise Unavailable("the data service is away", reason="UPSTREAM_ERROR")
        self.results[filename] = content
        return f"tenants/{tenant}/files/file-{len(self.results)}"


class FakeModels:
    """The registry and the compressor, without them."""

    def __init__(self) -> None:
        self.versions: dict[str, BaseVersion] = {}
        self.scenes: dict[str, Scene] = {}
        self.is_away = False

    def resolve(self, tenant: str, reference: str, field: str) -> BaseVersion:
        if reference not in self.versions:
            raise NotFound(f"there is no version {reference}")
        return self.versions[reference]

    def ids(self, tenant: str) -> Sequence[str]:
        return sorted({version.model for version in self.versions.values()})

    def scene(self, tenant: str, model: str) -> Scene:
        if self.is_away:
            raise Unavailable("the registry is away", reason="UPSTREAM_ERROR")
        return self.scenes.get(model, Scene())


class ScriptedJob:
    """A job that says what the test has it say (``work.run_job``)."""

    def __init__(self, outcome: JobOutcome | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.outcome = outcome
        self.specs: list[dict[str, Any]] = []

    def __call__(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        self.specs.append(spec)
        for message in self.messages:
            on_message(message)
        assert self.outcome is not None
        return self.outcome


class Parts:
    """A tuner whose clock stands still, on a migrated database."""

    def __init__(self, database: Database, folder: Path, clock: FakeClock) -> None:
        migrate(database, MIGRATIONS)
        self.database = database
        self.folder = folder
        self.clock = clock
        self.files = FakeFiles()
        self.models = FakeModels()
        self.store = self.store_of("one")
        self.content = ContentStore(str(folder / "data"), folder / "cache")
        self.job = ScriptedJob()
        self.rung = 0
        self.app = TunerApp(
            self.store,
            self.files,
            self.models,
            ring_relay=lambda: None,
            ring_workers=[self._ring],
            now=clock,
        )
        self.attempt = Attempt(
            self.store,
            self.files,
            self.content,
            scratch=folder / "scratch",
            threads=1,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=self.job,
            now=clock,
        )
        self.validating = ScriptedJob(JobResult(COUNTED))
        self.validation = Validation(
            self.store,
            self.content,
            scratch=folder / "scratch",
            rings=[self._ring],
            run_job=self.validating,
            now=clock,
        )
        self._write_content()

    def _ring(self) -> None:
        self.rung += 1

    def store_of(self, owner: str) -> JobStore:
        """The store as another process of the service sees it."""
        recorder = FactRecorder(Outbox(OUTBOX, now=self.clock))
        return JobStore(
            self.database, recorder, owner=owner, lease_seconds=LEASE_SECONDS, now=self.clock
        )

    def _write_content(self) -> None:
        """A training file of 200 examples, and the base `demo@7`."""
        path = self.content.working_path("files/train")
        path.write_text('{"messages": []}\n' * 200)
        content = Content(
            self.content.publish(path), manifest.sha256_file(path), path.stat().st_size
        )
        self.files.files[TRAINING_FILE] = FileReference(TRAINING_FILE, content, 200)
        target = self.content.working_path("runs/checkpoint")
        temporary = manifest.temporary_sibling(target)
        (temporary / "weights").write_text("weights")
        digest = manifest.commit(temporary, target, "checkpoint", {})
        self.models.versions["demo"] = BaseVersion(
            "tenants/acme/models/demo/versions/7",
            "demo",
            7,
            Content(self.content.publish(target), digest, 7),
        )

    def create(self, request_id: str = "", **wish: Any) -> Job:
        wanted = Wish(**{"base_model": "demo", "training_file": TRAINING_FILE, **wish})
        digest = manifest.sha256_bytes(repr(wanted).encode())
        job = self.app.create("acme", wanted, RequestKey(request_id, digest))
        self.validate()
        return self.app.get("acme", job.id)

    def validate(self) -> None:
        """Validate every job that waits for it."""
        while (lease := self.store.claim_unvalidated()) is not None:
            self.validation.perform(lease, threading.Event())

    def claim(self) -> Lease:
        lease = self.store.claim()
        assert lease is not None
        return lease

    def checkpoint_message(self, job: Job, step: int, final: bool = True) -> dict[str, Any]:
        """What a job says of a checkpoint that it has committed."""
        path = self.attempt.output_directory(job) / f"checkpoint-{step:08d}"
        if not path.exists():
            temporary = manifest.temporary_sibling(path)
            (temporary / "weights").write_text(f"{job.id} {step}")
            manifest.commit(temporary, path, "checkpoint", {"step": step})
        found, digest = manifest.read(path)
        return {
            "kind": "checkpoint",
            "path": str(path),
            "digest": digest,
            "size_bytes": found.size_bytes,
            "step": step,
            "train_loss": 2.5,
            "valid_loss": 2.25,
            "metrics": {"valid_loss": 2.25},
            "trained_tokens": 1000 * step,
            "final": final,
        }

    def result(self, job: Job) -> JobResult:
        directory = self.attempt.output_directory(job)
        directory.mkdir(parents=True, exist_ok=True)
        metrics = directory / "metrics.jsonl"
        metrics.write_text('{"step": 1, "train_loss": 2.5, "train_accuracy": 0.5}\n')
        return JobResult({"metrics_path": str(metrics), "trained_tokens": 20_000})

    def train(self) -> tuple[Job, Checkpoint]:
        """Take the oldest job through its training, to one final checkpoint."""
        self.validate()
        lease = self.claim()
        job = self.app.get("acme", lease.id)
        self.job.messages = [self.checkpoint_message(job, 20)]
        self.job.outcome = self.result(job)
        self.attempt.perform(lease, threading.Event())
        final = self.store.final_checkpoint(job.id)
        assert final is not None
        return self.app.get("acme", job.id), final

    def facts(self) -> list[tuple[str, dict[str, Any]]]:
        """Subject and data of every fact, oldest first."""
        with self.database.transaction() as connection:
            rows = connection.execute(OUTBOX.select().order_by(OUTBOX.c.sequence)).all()
        return [(row.subject, json.loads(row.document)["data"]) for row in rows]

    def fact_kinds(self) -> list[str]:
        return [subject.split(".", 3)[3] for subject, _ in self.facts()]

    def told(self, job: str) -> list[str]:
        """The messages of a job's events, oldest first."""
        events, _ = self.app.events("acme", job, 1000, "")
        return [recorded.event.message for recorded in reversed(events)]
