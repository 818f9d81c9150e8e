import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner.jobs.order import EpochSampler, epoch_order

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)
BATCH_SIZES = st.integers(1, 16)


def padded(lengths: list[int], order: list[int], batch_size: int) -> int:
    """Tokens that the batches hold, padding included."""
    batches = [order[n : n + batch_size] for n in range(0, len(order), batch_size)]
    return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)


@given(LENGTHS, BATCH_SIZES, st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_every_example_comes_once_in_an_order_of_seed_and_epoch(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(lengths, batch_size, seed, epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert epoch_order(lengths, batch_size, seed, epoch) == order


def test_epochs_and_seeds_differ() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 400).tolist()
    orders = [epoch_order(lengths, 8, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_batches_hold_little_padding_and_their_order_is_not_by_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 400).tolist()
    order = epoch_order(lengths, 8, 0, 0)
    assert padded(lengths, order, 8) < 1.05 * sum(lengths)
    longest = [max(lengths[i] for i in order[n : n + 8]) for n in range(0, 400, 8)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_a_batch_that_is_not_full_comes_last() -> None:
    lengths = [1, 2, 3, 4, 100]
    for seed in range(20):
        order = epoch_order(lengths, 2, seed, 0)
        assert padded(lengths, order, 2) == 100 * 2 + 3 * 2 + 1


def test_the_sampler_follows_the_epoch() -> None:
    sampler = EpochSampler([5] * 100, 8, seed=3)
    assert len(sampler) == 100
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert list(sampler) == epoch_order([5] * 100, 8, 3, epoch)
