"""What lies on the disk and belongs to nothing."""

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from millrace_client.home import Home
from millrace_mesh import diagnosis, orphans

TABLES = {
    "data": ("stored_bytes (digest)", "datasets (id)"),
    "trainer": ("runs (id)",),
    "tuner": ("jobs (id)",),
    "compressor": ("compressions (id)",),
    "registry": ("versions (artifact)",),
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A mesh whose databases know one of each."""
    home = Home(tmp_path)
    home.databases.mkdir()
    for stage, tables in TABLES.items():
        with sqlite3.connect(home.databases / f"{stage}.db") as connection:
            for table in tables:
                connection.execute(f"CREATE TABLE {table}")
        connection.close()
    know(home, "data", "stored_bytes", "sha256:abc")
    know(home, "data", "datasets", "dataset-1")
    know(home, "trainer", "runs", "run-1")
    know(home, "tuner", "jobs", "ftjob-1")
    know(home, "compressor", "compressions", "compression-1")
    artifact = {"uri": (home.data / "artifacts/compression-1").resolve().as_uri()}
    know(home, "registry", "versions", json.dumps(artifact))
    return home


def know(home: Home, stage: str, table: str, value: str) -> None:
    with sqlite3.connect(home.databases / f"{stage}.db") as connection:
        connection.execute(f"INSERT INTO {table} VALUES (?)", (value,))
    connection.close()


def put(home: Home, path: str, age_seconds: float = 7200.0) -> Path:
    """A file, and its folders, that were written so long ago."""
    file = home.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 1000)
    moment = time.time() - age_seconds
    while file != home.path:
        os.utime(file, (moment, moment))
        file = file.parent
    return home.path / path


def link(home: Home, version: str, artifact: str) -> None:
    folder = home.triton_models / version
    folder.mkdir(parents=True)
    (folder / "artifact").symlink_to(home.data / artifact)
    for path in (folder / "artifact", folder):
        os.utime(path, (1, 1), follow_symlinks=False)


OWNED = (
    "data/files/abc",
    "data/datasets/dataset-1/manifest.json",
    "data/runs/run-1/step-1/manifest.json",
    "data/tuning/acme/ftjob-1/step-1/manifest.json",
    "data/artifacts/compression-1/manifest.json",
    "data/artifacts/.work-compression-1/x",
    "scratch/data/datasets/dataset-1/spec.json",
    "scratch/trainer/runs/run-1/job.log",
    "scratch/tuner/jobs/ftjob-1/job.log",
    "scratch/compressor/compressions/compression-1/job.log",
)


def test_what_belongs_to_something_is_no_orphan(home: Home) -> None:
    for path in OWNED:
        put(home, path)
    link(home, "default.demo/1", "artifacts/compression-1")
    assert orphans.find(home) == []
    assert diagnosis.orphans_finding([], home).is_good


@pytest.mark.parametrize("path", OWNED)
def test_what_nobody_knows_is(home: Home, path: str) -> None:
    for name in ("abc", "dataset-1", "run-1", "ftjob-1", "compression-1"):
        path = path.replace(name, "unknown")
    put(home, path)
    (orphan,) = orphans.find(home)
    assert orphan.path.name.removeprefix(".work-") == "unknown"
    finding = diagnosis.orphans_finding([orphan], home)
    assert not finding.is_good
    assert "1.0 kB in 1 orphans" in finding.detail and "unknown" in finding.detail
    assert finding.remedy


@pytest.mark.parametrize(
    "path", ["data/files/.tmp-1", "data/runs/run-1/.tmp-step-1/x", "triton/models/.tmp-demo-1/x"]
)
def test_what_was_never_finished_is_once_it_is_old(home: Home, path: str) -> None:
    put(home, path, age_seconds=60)
    assert orphans.find(home) == []
    put(home, path)
    (orphan,) = orphans.find(home)
    assert ".tmp-" in orphan.path.name


def test_what_is_still_written_to_is_not(home: Home) -> None:
    put(home, "data/runs/run-1/.tmp-step-1/old")
    put(home, "data/runs/run-1/.tmp-step-1/new", age_seconds=1)
    os.utime(home.data / "runs/run-1/.tmp-step-1", (1, 1))
    assert orphans.find(home) == []


def test_a_version_that_the_registry_does_not_know_is(home: Home) -> None:
    link(home, "default.demo/2", "artifacts/gone")
    (orphan,) = orphans.find(home)
    assert orphan.path == home.triton_models / "default.demo/2"


def test_what_belongs_to_a_database_elsewhere_is_not_looked_at(tmp_path: Path) -> None:
    put(Home(tmp_path), "data/runs/run-9/x")
    assert orphans.find(Home(tmp_path)) == []


def test_many_are_told_in_one_line(home: Home) -> None:
    for number in range(5):
        put(home, f"data/runs/run-9{number}/x")
    told = orphans.describe(orphans.find(home), home)
    assert told.startswith("5.0 kB in 5 orphans: data/runs/run-90 (no row of trainer), ")
    assert told.endswith(" …")
