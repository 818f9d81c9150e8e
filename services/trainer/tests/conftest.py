"""Fixtures of the trainer's tests."""

import sys
from pathlib import Path

import pytest

from millrace_runtime.database import Database
from millrace_testkit.clock import FakeClock

# Under --import-mode=importlib a test directory is not importable by itself.
sys.path.insert(0, str(Path(__file__).parent))
from trainer_builders import Parts


@pytest.fixture
def parts(database: Database, tmp_path: Path, clock: FakeClock) -> Parts:
    """The service's parts on an empty database (SQLite, then PostgreSQL)."""
    return Parts(database, tmp_path, clock)
