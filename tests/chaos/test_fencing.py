"""A short slice of ``make chaos ONLY=fencing``."""

from pathlib import Path

import pytest

from millrace_testkit.servers import find_postgres
from tests.chaos import fencing


@pytest.mark.skipif(find_postgres() is None, reason="no PostgreSQL server is installed")
def test_nothing_stale_is_written_past_a_lease(tmp_path: Path) -> None:
    outcome = fencing.run(10, seed=3, directory=tmp_path, say=print)
    assert not outcome.violations
    assert outcome.runs >= 20
    assert outcome.figures["refused_writes_count"] > 0
