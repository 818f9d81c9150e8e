"""A short slice of ``mutations``."""

from pathlib import Path

from tests.chaos import mutations


def test_every_damage_is_found_before_use_and_said(tmp_path: Path) -> None:
    outcome = mutations.run(120, 7, tmp_path, print)
    assert not outcome.violations
    assert outcome.figures["detected_count"] == 120
