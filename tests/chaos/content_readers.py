"""Every stage's reader of stored content: the service's own parts, with a job that is played.

A reader makes new content and work that starts from it (``prepare``), has it damaged by its
caller, and reads it (``read``): was it used, and what did the service say?
"""

import random
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Table, select

import millrace_compressor.domain as compressor
from millrace_compressor.compression_run import CompressionRunner
from millrace_compressor.convert import compression_to_proto
from millrace_compressor.events import FactRecorder as CompressorFacts
from millrace_compressor.schema import METADATA as COMPRESSOR_METADATA
from millrace_compressor.schema import OUTBOX as COMPRESSOR_OUTBOX
from millrace_compressor.store import CompressionStore
from millrace_data.convert import dataset_to_proto
from millrace_data.dataset_build import DatasetBuilder
from millrace_data.domain import FileSet
from millrace_gateway.rest import errors, shapes
from millrace_runtime import cloudevent, manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, open_database
from millrace_runtime.errors import MillraceError
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobOutcome, JobStopped
from millrace_testkit.clock import FakeClock
from millrace_trainer.convert import run_to_proto
from millrace_trainer.domain import RequestKey as RunRequestKey
from millrace_trainer.training import Trainer
from millrace_tuner.convert import job_to_proto

SERVICES = Path(__file__).parents[2] / "services"
for _stage in ("data", "trainer", "tuner", "registry"):
    sys.path.append(str(SERVICES / _stage / "tests"))  # the services' own builders

import data_builders  # noqa: E402
import trainer_builders  # noqa: E402
import tuner_parts  # noqa: E402

LARGEST_FILE_BYTES = 3_000


@dataclass(frozen=True)
class Reading:
    """What became of the work. ``rest`` is what the gateway shows of it, ``fact`` what was told."""

    is_used: bool
    code: str = ""
    message: str = ""
    fact: str = ""
    fact_reason: str = ""


class Reader(Protocol):
    """
    Attributes:
        facts: one of which must follow when what is read is damaged; none where none does.
        is_file: whether what is damaged is a single file.
    """

    name: str
    facts: tuple[str, ...]
    is_file: bool

    def prepare(self, draw: random.Random) -> Path:
        """Make content and work; where the content lies."""
        ...

    def read(self) -> Reading: ...


class Used:
    """In place of a job: it would have used what it was given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self,
        module: str,
        spec: dict[str, Any],
        directory: Path,
        on_message: Callable[[dict[str, Any]], None],
        stop: threading.Event,
    ) -> JobOutcome:
        self.count += 1
        return JobStopped()


def commit(content: ContentStore, relative: str, draw: random.Random) -> tuple[str, str, int]:
    """A directory as trainers, tuners and builders leave it: (URI, digest, size)."""
    target = content.working_path(relative)
    temporary = manifest.temporary_sibling(target)
    (temporary / "model").mkdir()
    same = draw.randrange(2, LARGEST_FILE_BYTES)  # two files of one size, to be swapped
    sizes = {"model/model.safetensors": same, "train-00000.npy": same, "config.json": 40}
    for name, size in {**sizes, "model/tokenizer.json": draw.randrange(2, 500)}.items():
        (temporary / name).write_bytes(draw.randbytes(size))
    digest = manifest.commit(temporary, target, "checkpoint", {"step": 1})
    return content.publish(target), digest, 2 * same + 40


def last_fact(database: Database, outbox: Table) -> tuple[str, Any]:
    """Kind and message of the newest fact."""
    query = select(outbox.c.document).order_by(outbox.c.sequence.desc()).limit(1)
    with database.transaction() as connection:
        event = cloudevent.from_json(connection.execute(query).scalar_one())
    return event.fact.fact, event.message


def reading_of(shown: Any, used: bool, database: Database, outbox: Table) -> Reading:
    """What a user sees of failed work, and what was told of it."""
    failure = shapes.failure(shown.failure)
    fact, message = last_fact(database, outbox)
    said = getattr(message, "failure", None)
    return Reading(
        used,
        failure.code if failure else "",
        failure.message if failure else "",
        fact,
        said.reason if said is not None else "",
    )


class TrainerReader:
    """A run: its dataset, or the checkpoint that it continues."""

    facts = ("run.failed",)
    is_file = False

    def __init__(self, folder: Path, what: str) -> None:
        self.name = f"trainer {what}"
        self._what = what
        database = open_database(f"sqlite:///{folder}/trainer.db")
        self._parts = trainer_builders.Parts(database, folder, FakeClock())
        self._used = Used()
        self._trainer = Trainer(
            self._parts.store,
            self._parts.content,
            scratch=folder / "scratch",
            threads=1,
            mlflow_tracking_uri=None,
            ring=lambda: None,
            run_job=self._used,
            now=self._parts.clock,
        )
        self._number = 0

    def prepare(self, draw: random.Random) -> Path:
        self._number += 1
        dataset = self._content(f"datasets/{self._number}", draw)
        self._parts.datasets.known[trainer_builders.CORPUS] = dataset
        initial, damaged = "", f"datasets/{self._number}"
        if self._what == "checkpoint":
            damaged = f"runs/source/step-{self._number}"
            initial = self._checkpoint(self._content(damaged, draw))
        self._run = self._parts.create(
            initial_checkpoint=initial, request=RunRequestKey("", trainer_builders.DIGEST)
        )
        return Path(self._parts.content.working_path(damaged))

    def _content(self, relative: str, draw: random.Random) -> Any:
        return trainer_builders.Content(*commit(self._parts.content, relative, draw))

    def _checkpoint(self, content: Any) -> str:
        source = self._parts.create()
        lease = self._parts.store.claim()
        assert lease is not None
        self._parts.store.start(lease)
        made = trainer_builders.checkpoint_of(source, id=f"ckpt-{self._number}", final=True)
        made = replace(made, content=content)
        self._parts.store.add_checkpoint(lease, made, 1000)
        self._parts.store.succeed(lease)
        return str(made.name)

    def read(self) -> Reading:
        before = self._used.count
        lease = self._parts.store.claim()
        assert lease is not None
        self._trainer.perform(lease, threading.Event())
        shown = run_to_proto(self._parts.now(self._run))
        used = self._used.count > before
        return reading_of(shown, used, self._parts.database, trainer_builders.OUTBOX)


class TunerReader:
    """A tuning job: the checkpoint that it starts from, or its training file."""

    facts = ("job.failed",)

    def __init__(self, folder: Path, what: str) -> None:
        self.name = f"tuner {what}"
        self.is_file = what == "file"
        database = open_database(f"sqlite:///{folder}/tuner.db")
        self._parts = tuner_parts.Parts(database, folder, FakeClock())
        self._used = Used()
        self._parts.attempt._run_job = self._used
        self._number = 0

    def prepare(self, draw: random.Random) -> Path:
        self._number += 1
        store = self._parts.content
        base = commit(store, f"runs/base/{self._number}", draw)
        version = self._parts.models.versions["demo"]
        named = tuner_parts.BaseVersion(
            version.name, version.model, version.number, tuner_parts.Content(*base)
        )
        self._parts.models.versions["demo"] = named
        path = store.working_path(f"files/{self._number}")
        path.write_bytes(draw.randbytes(500))
        content = tuner_parts.Content(store.publish(path), manifest.sha256_file(path), 500)
        reference = tuner_parts.FileReference(tuner_parts.TRAINING_FILE, content, 200)
        self._parts.files.files[tuner_parts.TRAINING_FILE] = reference
        self._job = self._parts.create()
        return Path(path if self.is_file else store.working_path(f"runs/base/{self._number}"))

    def read(self) -> Reading:
        before = self._used.count
        self._parts.attempt.perform(self._parts.claim(), threading.Event())
        shown = job_to_proto(self._parts.app.get("acme", self._job.id))
        used = self._used.count > before
        return reading_of(shown, used, self._parts.database, tuner_parts.OUTBOX)


class CompressorReader:
    """A compression: its checkpoint, or the data that it is measured on."""

    facts = ("compression.failed",)
    is_file = False

    def __init__(self, folder: Path, what: str) -> None:
        self.name = f"compressor {what}"
        self._what = what
        self._database = open_database(f"sqlite:///{folder}/compressor.db")
        COMPRESSOR_METADATA.create_all(self._database.engine)
        self._content = ContentStore(str(folder / "data"), folder / "cache")
        self._clock = FakeClock()
        self._used = Used()
        self._store = CompressionStore(
            self._database,
            CompressorFacts(Outbox(COMPRESSOR_OUTBOX)),
            owner="a",
            lease_seconds=10,
            now=self._clock,
        )
        self._runner = CompressionRunner(
            self._store,
            self._content,
            scratch=folder / "scratch",
            threads=1,
            evaluation_tokens=16,
            ring=lambda: None,
            run_job=self._used,
            now=self._clock,
        )
        self._number = 0

    def prepare(self, draw: random.Random) -> Path:
        self._number += 1
        committed = {
            what: commit(self._content, f"{what}/{self._number}", draw)
            for what in ("checkpoint", "evaluation")
        }
        checkpoint = compressor.Checkpoint(
            f"tenants/acme/runs/r/checkpoints/c{self._number}",
            f"demo-{self._number}",
            1,
            True,
            compressor.Content(*committed["checkpoint"]),
            compressor.Content(*committed["evaluation"]),
        )
        gate = compressor.GatePolicy()
        order = compressor.Order("acme", checkpoint, compressor.Target.OPENVINO_INT8, gate)
        self._id = self._store.add(order).id
        return self._content.working_path(f"{self._what}/{self._number}")

    def read(self) -> Reading:
        before = self._used.count
        lease = self._store.claim()
        assert lease is not None
        self._runner.perform(lease, threading.Event())
        found = self._store.get("acme", self._id)
        assert found is not None
        shown = compression_to_proto(found)
        used = self._used.count > before
        return reading_of(shown, used, self._database, COMPRESSOR_OUTBOX)


class DataReader:
    """An uploaded file: read back by its user, or built into a dataset."""

    is_file = True

    def __init__(self, folder: Path, what: str) -> None:
        self.name = f"data {what}"
        self.facts = ("dataset.failed",) if what == "dataset" else ()
        self._database = open_database(f"sqlite:///{folder}/data.db")
        self._parts = data_builders.Parts(self._database, folder, FakeClock())
        self._used = Used()
        self._builder = DatasetBuilder(
            self._parts.dataset_store,
            self._parts.file_store,
            self._parts.stored,
            self._parts.content,
            scratch=folder / "scratch",
            threads=1,
            ring=lambda: None,
            run_job=self._used,
            now=self._parts.clock,
        )

    def prepare(self, draw: random.Random) -> Path:
        self._file = self._parts.upload(draw.randbytes(draw.randrange(2, LARGEST_FILE_BYTES)))
        if self.facts:
            self._dataset = self._parts.create(source=FileSet((self._file.id,)))
        digest = self._file.content.digest.removeprefix("sha256:")
        return Path(self._parts.root / "files" / digest)

    def read(self) -> Reading:
        return self._build() if self.facts else self._read_back()

    def _read_back(self) -> Reading:
        try:
            sent = list(self._parts.files.read("acme", self._file.id))
        except MillraceError as error:
            shown: Mapping[str, str] = errors.document(error)["error"]
            return Reading(False, shown["code"], shown["message"])
        return Reading(bool(sent))

    def _build(self) -> Reading:
        before = self._used.count
        lease = self._parts.dataset_store.claim()
        assert lease is not None
        self._builder.perform(lease, threading.Event())
        shown = dataset_to_proto(self._parts.datasets.get("acme", self._dataset.id))
        used = self._used.count > before
        return reading_of(shown, used, self._database, data_builders.OUTBOX)
