"""A short slice of ``make chaos ONLY=replicas``."""

from pathlib import Path

import pytest

from millrace_testkit.servers import find_postgres
from tests.chaos import replicas


@pytest.mark.skipif(find_postgres() is None, reason="no PostgreSQL server is installed")
def test_two_replicas_of_everything_come_to_the_undisturbed_end(tmp_path: Path) -> None:
    outcome = replicas.run(5, seed=2, directory=tmp_path, say=print)
    assert not outcome.violations
    assert outcome.runs == 5
    assert outcome.figures["lifecycles_count"] >= 3
