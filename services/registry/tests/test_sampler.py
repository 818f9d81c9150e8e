"""How the engine chooses a token by itself."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from millrace_registry.engines.sampler import Sampler

ROW = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def sampler(bias: dict[int, float] | None = None, **options: Any) -> Sampler:
    given = {"rng_seed": 1, "do_sample": True, "temperature": 1.0, **options}
    return Sampler(given, bias or {})


def shares(chooser: Sampler, times: int = 4000) -> list[float]:
    seen = Counter(chooser.choose(ROW) for _ in range(times))
    return [seen[token] / times for token in range(4)]


def test_it_draws_by_the_models_distribution() -> None:
    assert shares(sampler()) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.04)


def test_a_temperature_sharpens() -> None:
    wanted = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    assert shares(sampler(temperature=0.5)) == pytest.approx(wanted / wanted.sum(), abs=0.04)
    assert shares(sampler(temperature=1e-6), 20)[0] == 1


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.85, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    assert sum(share > 0 for share in shares(sampler(top_p=top_p))) == kept


@pytest.mark.parametrize("top_k", [1, 3, 99])
def test_top_k_keeps_the_likeliest(top_k: int) -> None:
    assert sum(share > 0 for share in shares(sampler(top_k=top_k))) == min(top_k, 4)


def test_a_bias_is_added_to_the_logits() -> None:
    assert sampler({3: 100}).choose(ROW) == 3
    assert shares(sampler({0: -100}))[0] == 0
    greedy = sampler({1: 0.8}, do_sample=False)
    assert greedy.choose(ROW) == 1


def test_penalties_count_what_was_chosen() -> None:
    once = sampler(do_sample=False, presence_penalty=1.0)
    assert [once.choose(ROW) for _ in range(4)] == [0, 1, 0, 0]
    often = sampler(do_sample=False, frequency_penalty=1.0)
    assert [often.choose(ROW) for _ in range(4)] == [0, 1, 0, 2]


def test_a_seed_repeats_and_the_row_is_left_alone() -> None:
    before = ROW.copy()
    first, second = sampler({1: 1}, rng_seed=7), sampler({1: 1}, rng_seed=7)
    assert [first.choose(ROW) for _ in range(50)] == [second.choose(ROW) for _ in range(50)]
    assert (before == ROW).all()
