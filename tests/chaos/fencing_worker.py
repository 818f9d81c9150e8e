"""``python -m tests.chaos.fencing_worker SPEC.json``: one process that the harness stops.

It runs the real workers of every stage, or the registry's real control loops, until SIGTERM.
Each has a database connection of its own, which carries its name into the record of writes.
"""

import json
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import event

from millrace_runtime.database import Database, open_database
from millrace_runtime.hosting import Background
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.work import Worker
from tests.chaos.fencing_registry import Registry, connect_triton
from tests.chaos.fencing_stages import TABLES, Part, QuickJob, Stages, insist


class Spec(BaseModel):
    """What one process is told.

    Attributes:
        kind: "stages" or "registries".
        copies: workers of each stage, or endpoints.
        idle_milliseconds: PostgreSQL ends a transaction that lies for so long.
        triton: address of the played Triton servers, for registries.
    """

    name: str
    kind: str
    url: str
    root: Path
    journal: Path
    seed: int
    copies: int
    lease_seconds: float
    idle_milliseconds: int
    longest_pause_seconds: float
    triton: tuple[str, int] | None = None


def url_of(url: str, stage: str, writer: str, idle_milliseconds: int) -> str:
    """The schema of ``stage`` in the database at ``url``, for a connection with a name."""
    limit = f"-c idle_in_transaction_session_timeout%3D{idle_milliseconds}"
    return f"{url}?application_name={writer}&options=-csearch_path%3D{stage} {limit}"


class Journal:
    """What a worker saw of its own refusals, for the harness to read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, **fields: Any) -> None:
        with self._lock, self._path.open("a") as stream:
            stream.write(json.dumps(fields) + "\n")


def lie_in_transactions(database: Database, seed: int, longest_seconds: float) -> None:
    """Make one transaction in three lie for a moment before its COMMIT, to be stopped there."""
    chance = random.Random(seed)

    def wait(_connection: Any) -> None:
        if chance.random() < 1 / 3:
            time.sleep(chance.uniform(0, longest_seconds))

    event.listen(database.engine, "commit", wait)


def insistent(part: Part, journal: Journal) -> Callable[[Lease, threading.Event], None]:
    """``part.perform``, which tries every other write too once one was refused."""

    def perform(lease: Lease, stop: threading.Event) -> None:
        try:
            part.perform(lease, stop)
        except LeaseLost:
            accepted = insist(part.writes, lease)
            journal.write(tried=len(part.writes), accepted=accepted, id=lease.id, epoch=lease.epoch)
            raise

    return perform


def stage_workers(spec: Spec) -> list[Background]:
    job = QuickJob(spec.seed, spec.longest_pause_seconds)
    stages = Stages(spec.root, spec.lease_seconds, job)
    journal = Journal(spec.journal)
    workers: list[Background] = []
    for stage in TABLES:
        for copy in range(spec.copies):
            owner = f"{spec.name}/{stage}/{copy}"
            database = _database(spec, stage, owner)
            part = stages.part(stage, database, owner)
            perform = insistent(part, journal)
            workers.append(Worker(owner, part.source, perform, spec.lease_seconds))
    return workers


def registries(spec: Spec) -> list[Background]:
    assert spec.triton is not None
    journal = Journal(spec.journal)
    loops: list[Background] = []
    for copy in range(spec.copies):
        stage = f"registry_{copy}"
        owner = f"{spec.name}/{stage}"
        triton = connect_triton(spec.triton, stage, owner)
        registry = Registry(_database(spec, stage, owner), spec.root / stage, owner, triton)
        loops.append(registry.loop(spec.lease_seconds, journal.write))
    return loops


def _database(spec: Spec, stage: str, owner: str) -> Database:
    database = open_database(url_of(spec.url, stage, owner, spec.idle_milliseconds))
    lie_in_transactions(database, spec.seed, spec.longest_pause_seconds)
    return database


def main() -> None:
    spec = Spec.model_validate_json(Path(sys.argv[1]).read_bytes())
    logging.basicConfig(level="INFO", format="%(asctime)s %(threadName)s %(message)s")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    workers = stage_workers(spec) if spec.kind == "stages" else registries(spec)
    threads = [threading.Thread(target=each.run, name=each.name) for each in workers]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    while not stop.wait(0.1):
        for worker in workers:
            if isinstance(worker, Worker):
                worker.ring()
    for worker in workers:
        worker.drain()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
