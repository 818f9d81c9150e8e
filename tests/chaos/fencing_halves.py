"""What is disturbed in the fencing harness: the stages' work, and the registries' endpoints."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import text

import millrace_compressor
import millrace_data
import millrace_registry
import millrace_trainer
import millrace_tuner
from millrace_runtime import manifest
from millrace_runtime.database import Database, migrate, open_database
from tests.chaos import fencing_audit, fencing_registry, fencing_stages
from tests.chaos.fencing_audit import DRIVER
from tests.chaos.fencing_driver import Driver
from tests.chaos.fencing_registry import Endpoint
from tests.chaos.fencing_stages import STEPS
from tests.chaos.fencing_worker import url_of

_STAGE_COPIES = 3
_ENDPOINTS = 5

_MIGRATIONS = {
    stage: Path(str(package.__file__)).parent / "migrations"
    for stage, package in {
        "data": millrace_data,
        "trainer": millrace_trainer,
        "tuner": millrace_tuner,
        "compressor": millrace_compressor,
        "registry": millrace_registry,
    }.items()
}
# What is work, by stage: its table, and when a row of it still is.
_UNFINISHED = {
    "data": "datasets WHERE state IN ('QUEUED', 'RUNNING')",
    "trainer": "runs WHERE state IN ('QUEUED', 'RUNNING')",
    "tuner": "jobs WHERE state IN ('QUEUED', 'RUNNING') AND trained_time IS NULL",
    "compressor": "compressions WHERE state IN ('QUEUED', 'RUNNING')",
}
Held = dict[tuple[str, str], int]
"""The epoch of each (stage, id) that somebody holds."""


class Bench:
    """What both halves share: the database, the draw, the folder, and what was found."""

    def __init__(
        self, url: str, administration: Database, chance: random.Random, directory: Path
    ) -> None:
        self.url = url
        self.administration = administration
        self.chance = chance
        self.directory = directory
        self.violations: list[str] = []
        self.takeovers: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def open_stage(self, schema: str, tables: Sequence[str]) -> Database:
        """A migrated schema, every write to which is noted."""
        with self.administration.transaction() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        database = open_database(url_of(self.url, schema, DRIVER, 10_000))
        migrate(database, _MIGRATIONS[schema.split("_")[0]])
        fencing_audit.watch(self.administration, schema, tables)
        return database

    def scalar(self, statement: str, **values: Any) -> Any:
        with self.administration.transaction() as connection:
            return connection.execute(text(statement), values).scalar_one()


class StageHalf:
    """Data, trainer, tuner and compressor: three processes with three workers of each."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._databases = {
            stage: bench.open_stage(stage, tables)
            for stage, tables in fencing_stages.TABLES.items()
        }
        self._driver = Driver(self._databases, bench.directory)
        self.specification = {"kind": "stages", "copies": _STAGE_COPIES}
        self.process_count = 3

    def ask(self) -> None:
        """Keep every worker busy."""
        wanted = self.process_count * _STAGE_COPIES + 3
        waiting = [self._count(stage) for stage in _UNFINISHED]
        for _ in range(wanted - min(waiting)):
            self._driver.ask()

    def victim(self, names: Sequence[str]) -> str:
        return self._bench.chance.choice(names)

    def held_by(self, prefix: str) -> Held:
        found: Held = {}
        for stage, rows in _UNFINISHED.items():
            query = f"SELECT id, epoch FROM {stage}.{rows} AND lease_owner LIKE :prefix"
            with self._bench.administration.transaction() as connection:
                result = connection.execute(text(query), {"prefix": f"{prefix}/%"})
                found |= {(stage, row.id): row.epoch for row in result}
        return found

    def epoch(self, item: tuple[str, str]) -> int:
        stage, id = item
        table = _UNFINISHED[stage].split()[0]
        query = f"SELECT epoch FROM {stage}.{table} WHERE id = :id"
        return int(self._bench.scalar(query, id=id))

    def is_quiet(self) -> bool:
        return not any(self._count(stage) for stage in _UNFINISHED)

    def check(self) -> list[str]:
        wrong = [*self._facts(), *self._damaged()]
        for database in self._databases.values():
            database.close()
        return wrong

    def _count(self, stage: str) -> int:
        rows = _UNFINISHED[stage]
        return int(self._bench.scalar(f"SELECT count(*) FROM {stage}.{rows}"))

    def _facts(self) -> list[str]:
        """Of each item exactly one set of facts."""
        said: Counter[tuple[str, str]] = Counter()
        for note in fencing_audit.read(self._bench.administration):
            is_ours = note.stage in _UNFINISHED and note.table == "outbox" and note.old is None
            if is_ours and note.new is not None:
                document = json.loads(note.new["document"])
                step = document["data"].get("step", "")
                said[note.item[1], f"{document['type'].split('.')[-1]} {step}".strip()] += 1
        wrong = [f"{id} said {fact} {n} times" for (id, fact), n in said.items() if n != 1]
        for stage, end in _ENDS.items():
            query = f"SELECT id, {end[0]} AS failed FROM {stage}.{end[1]}"
            with self._bench.administration.transaction() as connection:
                rows = connection.execute(text(query)).all()
            for row in rows:
                facts = sorted(fact for id, fact in said if id == row.id)
                if facts != sorted(end[2] if row.failed else end[3]):
                    wrong.append(f"{row.id} ({'failed' if row.failed else 'done'}) said {facts}")
        return wrong

    def _damaged(self) -> list[str]:
        """Content that a row names, and that is not what the row says."""
        contents = (
            "SELECT uri, digest FROM data.datasets WHERE state = 'SUCCEEDED'",
            "SELECT content->>'uri', content->>'digest' FROM trainer.checkpoints",
            "SELECT uri, digest FROM tuner.checkpoints",
            "SELECT artifact->>'uri', artifact->>'digest' FROM compressor.compressions"
            " WHERE state = 'SUCCEEDED'",
        )
        wrong = []
        with self._bench.administration.transaction() as connection:
            rows = [row for query in contents for row in connection.execute(text(query))]
        for uri, digest in rows:
            try:
                manifest.verify(Path(uri.removeprefix("file://")), digest)
            except manifest.ManifestError as error:
                wrong.append(str(error))
        self._bench.counts["contents_count"] = len(rows)
        return wrong


# Of each stage: whether a row failed, the table, and what is said of one that failed or did not.
_CHECKPOINTS = [f"CheckpointFinished {step}" for step in STEPS]
_ENDS: Mapping[str, tuple[str, str, list[str], list[str]]] = {
    "data": ("state = 'FAILED'", "datasets", ["DatasetFailed"], ["DatasetReady"]),
    "trainer": (
        "state = 'FAILED'",
        "runs",
        ["RunStarted", "RunFailed"],
        ["RunStarted", "RunSucceeded", *_CHECKPOINTS],
    ),
    "tuner": (
        "state = 'FAILED'",
        "jobs",
        ["JobStarted", "JobFailed"],
        ["JobStarted", *_CHECKPOINTS],
    ),
    "compressor": (
        "state = 'FAILED'",
        "compressions",
        ["CompressionFailed"],
        ["ArtifactFinished"],
    ),
}


class RegistryHalf:
    """Two registries that share several endpoints, each endpoint with a database of its own."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._schemas = [f"registry_{number}" for number in range(_ENDPOINTS)]
        self._databases = [bench.open_stage(s, fencing_registry.TABLES) for s in self._schemas]
        pairs = zip(self._schemas, self._databases, strict=True)
        self._endpoints = {
            schema: Endpoint(database, bench.directory / schema) for schema, database in pairs
        }
        tritons = {schema: each.triton for schema, each in self._endpoints.items()}
        self.specification = {
            "kind": "registries",
            "copies": _ENDPOINTS,
            "triton": fencing_registry.serve_tritons(tritons),
        }
        self.process_count = 2

    def ask(self) -> None:
        """A new version for an endpoint, more often than a rollout takes."""
        chosen = self._bench.chance.choice(self._schemas)
        self._endpoints[chosen].finish_artifact()

    def victim(self, names: Sequence[str]) -> str:
        """The one that leads more endpoints."""
        return max(names, key=lambda name: len(self.held_by(name)))

    def held_by(self, prefix: str) -> Held:
        found: Held = {}
        for schema in self._schemas:
            query = f"SELECT id, epoch FROM {schema}.controllers WHERE lease_owner LIKE :prefix"
            with self._bench.administration.transaction() as connection:
                result = connection.execute(text(query), {"prefix": f"{prefix}/%"})
                found |= {(schema, row.id): row.epoch for row in result}
        return found

    def epoch(self, item: tuple[str, str]) -> int:
        query = f"SELECT epoch FROM {item[0]}.controllers"
        return int(self._bench.scalar(query))

    def is_quiet(self) -> bool:
        return all(endpoint.is_quiet() for endpoint in self._endpoints.values())

    def check(self) -> list[str]:
        wrong = [
            f"{schema}: {what}"
            for schema, endpoint in self._endpoints.items()
            for what in endpoint.wrongs()
        ]
        for database in self._databases:
            database.close()
        return wrong


Half = StageHalf | RegistryHalf
