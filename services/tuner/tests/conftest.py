"""Fixtures of the tuner's tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from millrace_runtime.database import Database, open_database
from millrace_testkit.clock import FakeClock

# Under --import-mode=importlib a test directory is not importable by itself.
sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from tuner_parts import Parts


@pytest.fixture
def parts(tmp_path: Path, clock: FakeClock) -> "Iterator[Parts]":
    """On SQLite: what both databases do alike is asserted in test_store."""
    from tuner_parts import Parts

    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield Parts(database, tmp_path, clock)
    database.close()


@pytest.fixture
def stored(database: Database, tmp_path: Path, clock: FakeClock) -> "Parts":
    """On each database in turn."""
    from tuner_parts import Parts

    return Parts(database, tmp_path, clock)
