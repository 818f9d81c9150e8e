"""A short slice of ``full_disk``; it takes the rights to mount and to trace."""

from pathlib import Path

import pytest

from tests.chaos import full_disk


def test_a_full_or_failing_disk_is_said_and_got_over(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = full_disk.run(12, 3, tmp_path, said.append)
    if not outcome.runs:
        pytest.skip("; ".join(said))
    assert not outcome.violations
    refused = [count for name, count in outcome.figures.items() if "refused" in name]
    assert sum(map(int, refused)) > 0
