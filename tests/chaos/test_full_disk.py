"""A short slice of ``full_disk``; it takes the rights to mount and to trace."""

from pathlib import Path

import pytest

from tests.chaos import full_disk
from tests.chaos.disks import DisksNotAllowed


def test_a_full_or_failing_disk_is_said_and_got_over(tmp_path: Path) -> None:
    try:
        outcome = full_disk.run(12, 3, tmp_path, print)
    except DisksNotAllowed as error:
        pytest.skip(str(error))
    assert not outcome.violations
    refused = [count for name, count in outcome.figures.items() if "refused" in name]
    assert sum(map(int, refused)) > 0
