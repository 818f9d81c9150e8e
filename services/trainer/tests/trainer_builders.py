"""What the trainer's tests build: the service's parts, and values for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database
from millrace_runtime.errors import NotFound
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock
from millrace_trainer.app import TrainerApp
from millrace_trainer.domain import Checkpoint, Content, Failure, RequestKey, Run
from millrace_trainer.events import FactRecorder
from millrace_trainer.schema import METADATA, OUTBOX
from millrace_trainer.store import RunStore

LEASE_SECONDS = 15.0
DIGEST = "sha256:" + "ab" * 32
DATASET = Content("file:///data/datasets/d", DIGEST, 1000)
CORPUS = "tenants/acme/datasets/dataset-1"
LATE = "tenants/acme/datasets/dataset-2"
"""A dataset that is still being built."""


class FakeDatasets:
    """In place of the data service: ``CORPUS`` is ready, ``LATE`` is not yet."""

    def __init__(self) -> None:
        self.known: dict[str, Content | Failure | None] = {CORPUS: DATASET, LATE: None}

    def find(self, name: str) -> Content | Failure | None:
        if name not in self.known:
            raise NotFound(f"there is no dataset {name}")
        return self.known[name]


class Parts:
    """The service's parts, wired as ``__main__`` does, with a clock that tests move."""

    def __init__(self, database: Database, folder: Path, clock: FakeClock) -> None:
        METADATA.create_all(database.engine)
        self.database = database
        self.clock = clock
        self.root = folder / "data"
        self.content = ContentStore(str(self.root), folder / "cache")
        self.datasets = FakeDatasets()
        self.store = self.store_of("one")
        self.rings: list[str] = []
        self.app = TrainerApp(
            self.store,
            self.datasets,
            ring=lambda: self.rings.append("relay"),
            ring_workers=lambda: self.rings.append("workers"),
            now=clock,
        )

    def store_of(self, owner: str) -> RunStore:
        """The runs as another replica of the service sees them."""
        record = FactRecorder(Outbox(OUTBOX, self.clock))
        return RunStore(
            self.database, record, owner=owner, lease_seconds=LEASE_SECONDS, now=self.clock
        )

    def create(
        self,
        dataset: str = CORPUS,
        request: RequestKey = RequestKey("", DIGEST),
        initial_checkpoint: str = "",
        architecture: Mapping[str, int] = {},
        hyperparameters: Mapping[str, float | int] = {},
    ) -> Run:
        return self.app.create(
            "acme", "demo", dataset, initial_checkpoint, architecture, hyperparameters, request
        )

    def now(self, run: Run) -> Run:
        """The run as it is now."""
        return self.app.get(run.tenant, run.id)

    def facts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(subject, traceparent, data) of everything recorded, oldest first."""
        with self.database.transaction() as connection:
            rows = connection.execute(select(OUTBOX).order_by(OUTBOX.c.sequence)).all()
        return [(row.subject, row.traceparent, json.loads(row.document)["data"]) for row in rows]

    def subjects(self) -> list[str]:
        """What was said, without the tenant's prefix."""
        return [subject.removeprefix("millrace.acme.trainer.") for subject, _, _ in self.facts()]


def checkpoint_of(run: Run, step: int = 100, id: str = "", final: bool = False) -> Checkpoint:
    """What a run that reached ``step`` leaves."""
    return Checkpoint(
        tenant=run.tenant,
        run_id=run.id,
        id=id or f"ckpt-{step:08d}",
        model=run.model,
        step=step,
        tokens_seen=step * 4096,
        train_loss=2.5,
        heldout_loss=2.75,
        final=final,
        content=Content(f"file:///data/runs/{run.id}/{step}", DIGEST, 500),
        dataset_name=run.dataset_name,
        dataset=DATASET,
        create_time=run.create_time,
    )
