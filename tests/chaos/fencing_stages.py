"""Each stage's real store and real worker, around a job that is quick: what fencing stops.

The job only sleeps, commits content as the real ones do, and says what they say. After its
lease is lost, a worker here does not stop at the first refusal: it tries every write it has.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import millrace_compressor.domain as compressor
import millrace_data.domain as data
import millrace_trainer.domain as trainer
import millrace_tuner.domain as tuner
from millrace_compressor.compression_run import CompressionRunner
from millrace_compressor.events import FactRecorder as CompressorFacts
from millrace_compressor.schema import OUTBOX as COMPRESSOR_OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_data.dataset_build import DatasetBuilder
from millrace_data.events import FactRecorder as DataFacts
from millrace_data.file_bytes import FileBytes
from millrace_data.schema import OUTBOX as DATA_OUTBOX
from millrace_data.store import DatasetStore, FileStore
from millrace_runtime import manifest, names
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, WorkSource
from millrace_trainer.events import FactRecorder as TrainerFacts
from millrace_trainer.schema import OUTBOX as TRAINER_OUTBOX
from millrace_trainer.store import RunStore
from millrace_trainer.training import Trainer
from millrace_tuner import steps as tuner_steps
from millrace_tuner.app import Files
from millrace_tuner.attempt import Attempt
from millrace_tuner.domain import FileReference
from millrace_tuner.events import FactRecorder as TunerFacts
from millrace_tuner.schema import OUTBOX as TUNER_OUTBOX
from millrace_tuner.store import JobStore
from millrace_tuner.validation import Validation

TENANT = "acme"
STEPS = (10, 20, 30)
TABLES = {
    "data": ("datasets", "outbox"),
    "trainer": ("runs", "checkpoints", "run_metrics", "outbox"),
    "tuner": ("jobs", "checkpoints", "job_events", "outbox"),
    "compressor": ("compressions", "outbox"),
}
_DIGEST = "sha256:" + "ab" * 32
# What the registry reads of an artifact.
_MODEL_FILES = {
    "config.json": '{"max_position_embeddings": 128}',
    "tokenizer_config.json": '{"eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}',
}

Message = dict[str, Any]
Write = Callable[[Lease], object]


@dataclass(frozen=True)
class Part:
    """One worker's half of a stage: where its rows come from, what it does, all it may write."""

    source: WorkSource
    perform: Callable[[Lease, threading.Event], None]
    writes: Sequence[Write]


class QuickJob:
    """In place of ``work.run_job``. With ``has_mistakes``, every eighth item is its user's."""

    def __init__(
        self, seed: int, longest_pause_seconds: float, *, has_mistakes: bool = True
    ) -> None:
        self._random = random.Random(seed)
        self._longest_pause_seconds = longest_pause_seconds
        self._has_mistakes = has_mistakes

    def __call__(
        self,
        module: str,
        spec: Message,
        directory: Path,
        on_message: Callable[[Message], None],
        stop: threading.Event,
    ) -> JobOutcome:
        stage = module.split(".")[0].removeprefix("millrace_")
        id = next(spec[k] for k in ("dataset_id", "run_id", "job", "compression_id") if k in spec)
        if self._has_mistakes and sum(id.encode()) % 8 == 0:
            self._progress(on_message, 1)
            return JobFailure("BAD_DATA", "line 3 is empty")
        return {
            "data": self._dataset,
            "trainer": self._steps,
            "tuner": self._steps,
            "compressor": self._artifact,
        }[stage](spec, on_message)

    def _dataset(self, spec: Message, on_message: Callable[[Message], None]) -> JobOutcome:
        self._progress(on_message, 4)
        made = self._commit(Path(spec["output_path"]), spec["dataset_id"])
        kept = {"read": 1, "exact_duplicates": 0, "near_duplicates": 0, "filtered": {}}
        metadata = {
            "tokenizer_digest": _DIGEST,
            "train_tokens": 9,
            "heldout_tokens": 1,
            "documents": {**kept, "kept_train": 1, "kept_heldout": 0},
        }
        return JobResult({"path": spec["output_path"], "metadata": metadata, **made})

    def _steps(self, spec: Message, on_message: Callable[[Message], None]) -> JobOutcome:
        output = Path(spec["output_directory"])
        for step in STEPS:
            self._progress(on_message, 1)
            path = output / f"checkpoint-{step:08d}"
            made = self._commit(path, f"{output.name} {step}")
            losses = {"train_loss": 2.5, "heldout_loss": 2.5, "valid_loss": 2.5}
            counts = {"tokens_seen": step, "trained_tokens": step, "parameters": 9}
            final = {"step": step, "final": step == STEPS[-1], "path": str(path)}
            on_message({"kind": "checkpoint", "metrics": {}, **losses, **counts, **final, **made})
        metrics = output / "metrics.jsonl"
        metrics.write_text('{"step": 1, "train_loss": 2.5, "train_accuracy": 0.5}\n')
        return JobResult({"metrics_path": str(metrics), "trained_tokens": STEPS[-1]})

    def _artifact(self, spec: Message, on_message: Callable[[Message], None]) -> JobOutcome:
        """Measured, so never the same twice: what is there already stands."""
        self._progress(on_message, 4)
        path = Path(spec["artifact_path"])
        if not (path / manifest.MANIFEST_NAME).exists():
            try:
                self._commit(path, uuid.uuid4().hex)
            except manifest.ManifestMismatch as error:
                return JobFailure("INTERNAL", str(error))
        found, digest = manifest.read(path)
        measured = {"original_perplexity": 10.0, "artifact_perplexity": 10.1}
        made = {"artifact_digest": digest, "size_bytes": found.size_bytes}
        return JobResult({"artifact_path": str(path), "measurements": measured, **made})

    def _progress(self, on_message: Callable[[Message], None], times: int) -> None:
        for number in range(times):
            self._pause()
            counts = {"completed": number, "total": times, "metrics": {}}
            on_message({"kind": "progress", "phase": "train", **counts})
        self._pause()

    def _commit(self, target: Path, content: str) -> Message:
        """As the real jobs do, with time for a stop on either side of each step."""
        temporary = manifest.temporary_sibling(target)
        for name, text in {"weights": content, **_MODEL_FILES}.items():
            (temporary / name).write_text(text)
        self._pause()
        digest = manifest.commit(temporary, target, "checkpoint", {})
        self._pause()
        return {"digest": digest, "size_bytes": len(content)}

    def _pause(self) -> None:
        time.sleep(self._random.uniform(0, self._longest_pause_seconds))


class Stages:
    """The four stages with leased work, on one PostgreSQL and one data root."""

    def __init__(
        self,
        root: Path,
        lease_seconds: float,
        job: QuickJob,
        results: Files | None = None,
    ) -> None:
        """``results`` takes the tuner's result files; None: nobody keeps them."""
        self._root = root
        self._results = results or Results()
        self._lease_seconds = lease_seconds
        self._job = job
        self._content = ContentStore(str(root / "data"), root / "cache")

    def part(self, stage: str, database: Database, owner: str) -> Part:
        build: Mapping[str, Callable[[Database, str], Part]] = {
            "data": self._data,
            "trainer": self._trainer,
            "tuner": self._tuner,
            "compressor": self._compressor,
        }
        return build[stage](database, owner)

    def _data(self, database: Database, owner: str) -> Part:
        record = DataFacts(Outbox(DATA_OUTBOX))
        store = DatasetStore(database, record, owner=owner, lease_seconds=self._lease_seconds)
        builder = DatasetBuilder(
            store,
            FileStore(database, record),
            FileBytes(self._content, 1 << 20),
            self._content,
            scratch=self._root / "scratch",
            threads=1,
            ring=lambda: None,
            run_job=self._job,
        )
        content = data.Content("file:///stale", _DIGEST, 1)
        built = data.BuiltDataset(content, _DIGEST, 1, 1, {})
        writes: Sequence[Write] = (
            store.start,
            lambda lease: store.record_progress(lease, data.Progress("stale", 1, 2)),
            store.count_attempt,
            lambda lease: store.succeed(lease, built),
            lambda lease: store.fail(lease, data.Failure("STALE", "stale")),
            store.renew,
        )
        return Part(store, builder.perform, writes)

    def _trainer(self, database: Database, owner: str) -> Part:
        record = TrainerFacts(Outbox(TRAINER_OUTBOX))
        store = RunStore(database, record, owner=owner, lease_seconds=self._lease_seconds)
        runs = Trainer(
            store,
            self._content,
            scratch=self._root / "scratch",
            threads=1,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=self._job,
        )
        writes: Sequence[Write] = (
            store.start,
            lambda lease: store.record_progress(lease, trainer.Progress("stale", 1, 2)),
            lambda lease: store.add_checkpoint(lease, _trained(lease.id), 1),
            store.count_attempt,
            store.succeed,
            lambda lease: store.fail(lease, trainer.Failure("STALE", "stale")),
            store.renew,
        )
        return Part(store, runs.perform, writes)

    def _tuner(self, database: Database, owner: str) -> Part:
        record = TunerFacts(Outbox(TUNER_OUTBOX))
        store = JobStore(database, record, owner=owner, lease_seconds=self._lease_seconds)
        attempt = Attempt(
            store,
            self._results,
            self._content,
            scratch=self._root / "scratch",
            threads=1,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=self._job,
        )
        stale = tuner.Progress("stale", 1, 2)
        writes: Sequence[Write] = (
            lambda lease: store.change_leased(
                lease, lambda job: tuner_steps.progress(job, stale, tuner.utc_now())
            ),
            lambda lease: store.add_checkpoint(lease, _tuned(lease.id)),
            store.renew,
        )
        return Part(store, attempt.perform, writes)

    def validation(self, store: JobStore) -> Validation:
        """What finds every file of the tuner's jobs as it should be."""
        return Validation(
            store,
            self._content,
            scratch=self._root / "scratch",
            rings=(),
            run_job=lambda *_: JobResult({"training_examples": 10, "training_tokens": 100}),
        )

    def _compressor(self, database: Database, owner: str) -> Part:
        record = CompressorFacts(Outbox(COMPRESSOR_OUTBOX))
        store = CompressionStore(database, record, owner=owner, lease_seconds=self._lease_seconds)
        runner = CompressionRunner(
            store,
            self._content,
            scratch=self._root / "scratch",
            threads=1,
            evaluation_tokens=16,
            ring=lambda: None,
            run_job=self._job,
        )
        content = compressor.Content("file:///stale", _DIGEST, 1)
        measured, verdict = compressor.Measurements(), compressor.Verdict(True)
        writes: Sequence[Write] = (
            store.start,
            lambda lease: store.record_progress(lease, compressor.Progress("stale", 1, 2)),
            store.count_attempt,
            lambda lease: store.succeed(lease, content, measured, verdict),
            lambda lease: store.fail(lease, compressor.Failure("STALE", "stale")),
            store.renew,
        )
        return Part(store, runner.perform, writes)


class Results:
    """In place of the data service, to the tuner."""

    def training_file(self, name: str, field: str) -> FileReference:
        raise NotImplementedError

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        return f"tenants/{tenant}/files/{filename}"


def insist(writes: Sequence[Write], lease: Lease) -> int:
    """Try every write under a lease that is lost; how many were not refused."""
    accepted = 0
    for write in writes:
        try:
            write(lease)
        except LeaseLost:
            continue
        accepted += 1
    return accepted


def _trained(run: str) -> trainer.Checkpoint:
    content = trainer.Content("file:///stale", _DIGEST, 1)
    name, now = f"tenants/{TENANT}/datasets/d", trainer.utc_now()
    id = names.new_id("ckpt")
    return trainer.Checkpoint(
        TENANT, run, id, "demo", 99, 1, 1.0, None, False, content, name, content, now
    )


def _tuned(job: str) -> tuner.Checkpoint:
    content, id = tuner.Content("file:///stale", _DIGEST, 1), names.new_id("ckpt")
    return tuner.Checkpoint(
        TENANT, job, id, "demo", 99, 1.0, None, 1, False, content, _DIGEST, _DIGEST, tuner.utc_now()
    )
