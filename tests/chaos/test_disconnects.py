"""A short slice of ``make chaos ONLY=disconnects``."""

from pathlib import Path

import pytest

from tests.chaos import disconnects
from tests.engine import served


@pytest.mark.triton
@pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
@pytest.mark.skipif(not served.is_installed(), reason="deploy/local/setup.sh has not run")
def test_a_client_that_leaves_gives_its_slot_back(tmp_path: Path) -> None:
    outcome = disconnects.run(24, 1, tmp_path, print)
    # How soon is a figure of a quiet machine; that it happens, and leaves nothing, is not.
    late = [said for said in outcome.violations if "free only after" not in said]
    assert late == []
    assert outcome.runs == 24
