"""A short slice of ``make chaos ONLY=crash-replayed``: the long run draws more points."""

from pathlib import Path

import pytest

from tests.chaos import crash


@pytest.mark.timeout(600)
def test_lifecycles_with_kills_come_to_the_undisturbed_end(tmp_path: Path) -> None:
    outcome = crash.run_replayed(8, seed=1, directory=tmp_path, say=print)
    assert outcome.violations == []
    assert outcome.runs == 8
    assert int(outcome.figures["crash points known"]) >= 40
