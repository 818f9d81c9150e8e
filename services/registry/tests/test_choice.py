"""Tokens chosen for a whole batch, held against the sampler for one request."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from millrace_registry.engines.choice import Chooser, choose
from millrace_registry.engines.sampler import Sampler

DRAWS = 4000
LOGITS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))


def options(**changed: Any) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 1.0, "rng_seed": 5, **changed}


def shares(counts: Counter[int]) -> np.ndarray:
    return np.array([counts[token] for token in range(LOGITS.shape[1])]) / DRAWS


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_k": 0},
        {"top_p": 0.7},
        {"top_k": 9, "top_p": 0.8},
    ],
)
def test_it_draws_as_the_sampler_does(changed: dict[str, Any]) -> None:
    row = LOGITS[:1]
    chooser = Chooser(options(**changed), {})
    given = {
        key: value for key, value in options(**changed).items() if (key, value) != ("top_k", 0)
    }
    sampler = Sampler(given, {})
    counts = Counter(choose(row.expand(DRAWS, -1), [chooser] * DRAWS))
    expected = Counter(sampler.choose(row[0].numpy()) for _ in range(DRAWS))
    assert set(counts) <= allowed(row[0], changed)
    assert np.abs(shares(counts) - shares(expected)).max() < 0.04


def allowed(row: torch.Tensor, changed: dict[str, Any]) -> set[int]:
    """Tokens that may be drawn, counted out one by one."""
    order = row.argsort(descending=True).tolist()[: changed.get("top_k", 0) or None]
    total, kept = float(row.exp()[order].sum()), []
    for token in order:
        kept.append(token)
        if float(row.exp()[kept].sum()) / total >= changed.get("top_p", 1.0):
            break
    return set(kept)


def test_each_request_is_chosen_for_by_its_own_parameters() -> None:
    greedy, biased = Chooser({"do_sample": False, "rng_seed": 0}, {}), {7: 100.0}
    drawn = Chooser(options(top_k=1), {})
    chosen = choose(LOGITS, [greedy, Chooser({"do_sample": False, "rng_seed": 0}, biased), drawn])
    assert chosen == [int(LOGITS[0].argmax()), 7, int(LOGITS[2].argmax())]


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    alone, beside = Chooser(options(), {}), Chooser(options(), {})
    others = [Chooser(options(rng_seed=1), {}), Chooser(options(rng_seed=2, temperature=2.0), {})]
    told = [choose(LOGITS[:1], [alone])[0] for _ in range(30)]
    rows = LOGITS[:1].expand(3, -1)
    assert told == [choose(rows, [others[0], beside, others[1]])[1] for _ in range(30)]


def test_penalties_count_what_was_chosen() -> None:
    chooser = Chooser(
        {"do_sample": False, "rng_seed": 0, "presence_penalty": 0.5, "frequency_penalty": 2.0}, {}
    )
    sampler = Sampler(
        {"do_sample": False, "rng_seed": 0, "presence_penalty": 0.5, "frequency_penalty": 2.0}, {}
    )
    told = [choose(LOGITS[:1], [chooser])[0] for _ in range(30)]
    assert told == [sampler.choose(LOGITS[0].numpy()) for _ in range(30)]
    assert len(set(told)) > 3


def test_the_logits_are_left_as_they_are() -> None:
    before = LOGITS.clone()
    choose(LOGITS, [Chooser(options(), {1: 5.0})] * 3)
    assert torch.equal(LOGITS, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
    ],
)
def test_what_is_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Chooser(options(**{name: value}), {})
