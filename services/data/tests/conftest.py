"""Fixtures of the data service's tests."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace_runtime.database import Database
from millrace_runtime.jobs import Reporter
from millrace_testkit.clock import FakeClock

# Under --import-mode=importlib a test directory is not importable by itself.
sys.path.insert(0, str(Path(__file__).parent))
from data_builders import Parts


@pytest.fixture
def reporter_lines() -> tuple[Reporter, Callable[[], list[dict[str, Any]]]]:
    """A reporter, and what it has reported so far."""
    stream = io.StringIO()
    return Reporter(stream), lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def parts(database: Database, tmp_path: Path, clock: FakeClock) -> Parts:
    """The service's parts on an empty database (SQLite, then PostgreSQL)."""
    return Parts(database, tmp_path, clock)
