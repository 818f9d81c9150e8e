"""Pairs of golden prompts' scores, as a rollout is judged by them. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from millrace_registry.evidence import Pair
from millrace_registry.evidence_store import GoldenScore

_FEWEST_ANSWERS = 4
_SHORT = 0.25
_SHORT_IN_ALL = 0.5


@dataclass(frozen=True)
class _Both:
    """How both versions did on one prompt."""

    old: GoldenScore
    new: GoldenScore

    @property
    def are_answered(self) -> bool:
        return self.old.answer_tokens is not None and self.new.answer_tokens is not None


def pairs_of(
    scores: Iterable[GoldenScore], new: int, old: int, originals: Mapping[str, float | None]
) -> tuple[Pair, ...]:
    """Of the prompts that both versions have scored, in the order of their names.

    Args:
        new, old: numbers of the versions; without an old one (0) the checkpoint itself stands in.
        originals: its scores, by prompt.
    """
    found = {(score.version, score.prompt): score for score in scores}
    if old == 0:
        for prompt, score in originals.items():
            known = math.nan if score is None else score
            found[0, prompt] = GoldenScore(0, prompt, known)
    prompts = sorted(prompt for version, prompt in found if version == new)
    both = [_Both(found[old, p], found[new, p]) for p in prompts if (old, p) in found]
    is_cut = _is_cut_in_all([each for each in both if each.are_answered])
    return tuple(_pair(each, is_cut) for each in both)


def _pair(both: _Both, is_cut: bool) -> Pair:
    """An answer that is cut short stands for no score: what ends too early may score well."""
    new = math.nan if is_cut and _is_short(both) else both.new.score
    return Pair(both.new.prompt, both.old.score, new)


def _is_cut_in_all(answered: list[_Both]) -> bool:
    """One short answer is the model's own; where all are, on average, something cuts them."""
    old = sum(each.old.answer_tokens or 0 for each in answered)
    new = sum(each.new.answer_tokens or 0 for each in answered)
    return len(answered) >= _FEWEST_ANSWERS and new < _SHORT_IN_ALL * old


def _is_short(both: _Both) -> bool:
    if not both.are_answered:
        return False
    old, new = both.old.answer_tokens or 0, both.new.answer_tokens or 0
    return old > 0 and new <= _SHORT * old
