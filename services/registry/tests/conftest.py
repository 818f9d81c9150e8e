"""Lets the tests of this folder import its builders; registries that they share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace_runtime.database import Database, open_database
from millrace_testkit.clock import FakeClock

sys.path.insert(0, str(Path(__file__).parent))
from registry_builders import World


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    """A registry on SQLite."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield World(database, tmp_path, clock)
    database.close()


@pytest.fixture
def any_world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    """On SQLite, then on PostgreSQL."""
    return World(database, tmp_path, clock)
