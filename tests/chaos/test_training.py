"""A short slice of ``make chaos ONLY=training``: the moments that have been wrong before."""

import random
from pathlib import Path

import pytest

from tests.chaos.training import Bench, Told
from tests.chaos.training_kills import Kill

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, as it is imported


def at_point(bench: Bench, *words: str) -> Kill:
    """A kill at the first crash point whose name has all ``words``."""
    named = [point for point, _ in bench.points if all(word in point for word in words)]
    assert named, f"no point has {words} in its name"
    return Kill("rank", "point", point=named[0])


def disturbed(bench: Bench, *kills: Kill) -> Told:
    told = bench.disturb(iter(kills), len(kills), random.Random(1))
    assert told.violations == []
    assert len(told.kills) == len(kills), told
    return told


def test_two_ranks_that_are_killed_train_to_the_same_weights(tmp_path: Path) -> None:
    """First between a state and its checkpoint; then one rank, far from any checkpoint."""
    bench = Bench("two-ranks", tmp_path)
    told = disturbed(bench, at_point(bench, "commit", "rename after"), Kill("rank", "step", 27))
    assert max(told.steps_redone) > 0


def test_a_tuning_job_that_is_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    """Dropout and the order of examples go on in the middle of training."""
    bench = Bench("tuner", tmp_path)
    disturbed(bench, Kill("job", "step", 9))
