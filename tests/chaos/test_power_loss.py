"""A short slice of ``power_loss``; it takes root and ext4 on a loop mount."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import power_loss
from tests.chaos.disks import DisksNotAllowed
from tests.chaos.outcome import Outcome


def run_or_skip(run: Callable[[], Outcome]) -> Outcome:
    try:
        return run()
    except DisksNotAllowed as error:
        pytest.skip(str(error))


def test_what_was_acknowledged_survives_a_power_loss(tmp_path: Path) -> None:
    outcome = run_or_skip(lambda: power_loss.run(2, 11, tmp_path, print))
    assert not outcome.violations
    assert outcome.figures["acknowledged_count"] > 0


def test_a_database_that_is_less_careful_is_caught(tmp_path: Path) -> None:
    """The check can fail: with ``synchronous=NORMAL``, commits are lost."""
    outcome = run_or_skip(
        lambda: power_loss.run(1, 11, tmp_path, print, kinds=("row",), synchronous="NORMAL")
    )
    assert "was acknowledged and is lost" in outcome.violations[0]
