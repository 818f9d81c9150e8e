"""A short slice of the disturbances of nats-server: each kind once."""

from pathlib import Path

from tests.chaos import nats_faults


def test_no_fact_is_lost_or_acted_on_twice_whatever_happens_to_nats(tmp_path: Path) -> None:
    kinds = len(nats_faults.DISTURBANCES)
    outcome = nats_faults.run(kinds, 7, tmp_path, print, pace=nats_faults.SHORT)
    assert not outcome.violations
