"""The learning rate of a step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_trainer.jobs.pretrain import learning_rate
from millrace_trainer.jobs.specification import Hyperparameters

SETTINGS = Hyperparameters(
    learning_rate=1e-3, minimum_learning_rate_ratio=0.1, warmup_steps=10, total_steps=110
)


def test_it_rises_to_the_peak_and_falls_to_its_minimum() -> None:
    assert learning_rate(1, SETTINGS) == pytest.approx(1e-4)
    assert learning_rate(10, SETTINGS) == pytest.approx(1e-3)
    assert learning_rate(60, SETTINGS) == pytest.approx((1e-3 + 1e-4) / 2)  # half of the cosine
    assert learning_rate(110, SETTINGS) == pytest.approx(1e-4)


@given(warmup=st.integers(0, 40), total=st.integers(1, 40))
def test_it_stays_between_nothing_and_the_peak(warmup: int, total: int) -> None:
    """However short the run: even one that ends before its warm-up does."""
    settings = Hyperparameters(learning_rate=1e-3, warmup_steps=warmup, total_steps=total)
    rates = [learning_rate(step, settings) for step in range(1, total + 1)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    after = rates[max(0, warmup - 1) :]
    assert after == sorted(after, reverse=True)
