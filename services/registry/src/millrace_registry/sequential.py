"""Tests that may be looked at after every answer. Pure; plain arithmetic, nothing heavy to import.

Each gives the logarithm of an e-value: of evidence that a null hypothesis is false, which under
it exceeds ``log(1 / alpha)`` at any time at all with a probability of at most ``alpha`` (Ville's
inequality; Ramdas et al., arXiv:2210.01948). So nothing is spent by looking often, and no state
is kept between two looks: the value depends on the counts alone.
"""

import math
from collections.abc import Sequence

# Beta priors of the two versions' error rates. Any prior is valid; these lose least where the old
# version hardly ever fails, and where the new one may fail at any rate.
_NEW_PRIOR = (0.5, 0.5)
_OLD_PRIOR = (0.1, 1.0)
# Effective answers at which the boundary of ``slower`` is tightest, in its unit.
_TIGHTEST = 2.0
_BETS = (0.2, 0.5, 0.8, 0.98)
_WIDTHS = (0.3, 1.0)  # of the bound
_BISECTIONS = 50


def more_failures(
    new_failures: int, new_requests: int, old_failures: int, old_requests: int, margin: float
) -> float:
    """Evidence against: the new version fails at most ``margin`` (0…1) more often than the old.

    A mixture over both error rates, divided by the largest likelihood that the null hypothesis
    gives to the counts (universal inference; Wasserman et al., arXiv:1912.11436). Exact for any
    number and order of requests.
    """
    mixture = _log_mixture(new_failures, new_requests, _NEW_PRIOR) + _log_mixture(
        old_failures, old_requests, _OLD_PRIOR
    )
    rate = _likeliest_old_rate(new_failures, new_requests, old_failures, old_requests, margin)
    limit = min(1.0, rate + margin)
    new_rate = min(limit, new_failures / new_requests) if new_requests else 0.0
    return (
        mixture
        - _log_likelihood(new_failures, new_requests, new_rate)
        - _log_likelihood(old_failures, old_requests, rate)
    )


def slower(new: Sequence[int], old: Sequence[int], shift: int) -> float:
    """Evidence against: the new version's latencies tend to be at most the old one's, ``shift``
    bins later.

    Mann-Whitney's statistic with ties counted half, on two histograms of the same bins, watched
    through a half-normal mixture of shifts (Robbins 1970; Johari et al., arXiv:1512.04922; as a
    limit, Waudby-Smith et al., arXiv:2103.06476). The variance is the larger one of the null
    hypothesis without ties, and Brunner and Munzel's, which holds for unequal shapes.
    """
    moved = _moved(old, shift)
    new_total, old_total = sum(new), sum(moved)
    if not new_total or not old_total:
        return 0.0
    excess, spread = _mann_whitney(new, moved)
    effective = new_total * old_total / (new_total + old_total)
    score = excess / math.sqrt(max(spread, 1 / 12 / effective))
    root = effective + _TIGHTEST
    drift = score * math.sqrt(effective / root)
    normal = 0.5 * math.erfc(-drift / math.sqrt(2))
    if not normal:  # far on the other side
        return -math.inf
    return math.log(2 * normal) + 0.5 * math.log(_TIGHTEST / root) + drift**2 / 2


def worse(differences: Sequence[float], bound: float, margin: float) -> float:
    """Evidence against: the differences (new less old) lie evenly about ``-margin``, or about
    something better.

    So they do where both versions are alike, however they spread: which came first does not matter
    then, and they lie evenly about 0. What is beyond ``bound`` counts as ``bound``.

    A mixture of fixed bets on the next difference (Waudby-Smith and Ramdas, arXiv:2010.09686), on
    how far it is from ``-margin``, where what is beyond a width counts as the width: so a narrow
    one bets as much on a small loss that all share as the whole ``bound`` does on losses that
    spread. A bet doubles what is staked at most: ten differences are the fewest that tell one in
    500, and 0.3 of them all takes 12 (with clipping at ``bound`` alone, 23; ``test_sequential``).
    Fixed bets, not such as follow what was seen before (aGRAPA): the order does not matter, and a
    pair that is judged again changes nothing else.
    """
    losses = [-max(-bound, min(bound, each)) - margin for each in differences]
    wealth = [
        sum(math.log1p(bet * max(-1.0, min(1.0, loss / width))) for loss in losses)
        for width in (bound * part for part in _WIDTHS)
        for bet in _BETS
    ]
    return _log_sum(wealth) - math.log(len(wealth))


def _log_mixture(failures: int, requests: int, prior: tuple[float, float]) -> float:
    """Of one order of the requests, averaged over a Beta prior of the error rate."""
    a, b = prior
    return _log_beta(a + failures, b + requests - failures) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_likelihood(failures: int, requests: int, rate: float) -> float:
    """Of one order of the requests; the rate is in 0…1 and possible."""
    answered = requests - failures
    failed = failures * math.log(rate) if failures else 0.0
    return failed + (answered * math.log1p(-rate) if answered else 0.0)


def _likeliest_old_rate(
    new_failures: int, new_requests: int, old_failures: int, old_requests: int, margin: float
) -> float:
    """The old version's error rate that gives the counts most likelihood under the null."""
    free = old_failures / old_requests if old_requests else 1.0
    if not new_requests or new_failures / new_requests <= free + margin:
        return free
    # On the edge, new = old + margin: the slope falls all along, so that it is halved to its zero.
    low, high = free, min(1.0 - margin, new_failures / new_requests - margin)
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        slope = _slope(new_failures, new_requests, rate + margin)
        if slope + _slope(old_failures, old_requests, rate) > 0:
            low = rate
        else:
            high = rate
    return (low + high) / 2


def _slope(failures: int, requests: int, rate: float) -> float:
    """The log-likelihood's derivative."""
    if not 0 < rate < 1:
        return math.inf if rate <= 0 else -math.inf
    return failures / rate - (requests - failures) / (1 - rate)


def _moved(counts: Sequence[int], shift: int) -> list[int]:
    """The same histogram ``shift`` bins later; what would leave it is in the last bin."""
    if not shift:
        return list(counts)
    kept = len(counts) - shift
    moved = [0] * shift + list(counts[:kept])
    moved[-1] += sum(counts[kept:])
    return moved


def _mann_whitney(new: Sequence[int], old: Sequence[int]) -> tuple[float, float]:
    """(P(new > old) + P(new = old) / 2 - 1/2, its variance by Brunner and Munzel)."""
    new_total, old_total = sum(new), sum(old)
    new_places = _places(new, old)  # of each new latency among the old ones, 0…1
    old_places = _places(old, new)
    chance = sum(n * p for n, p in zip(new, new_places, strict=True)) / new_total
    new_spread = sum(n * (p - chance) ** 2 for n, p in zip(new, new_places, strict=True))
    old_spread = sum(n * (p - 1 + chance) ** 2 for n, p in zip(old, old_places, strict=True))
    return chance - 0.5, new_spread / new_total**2 + old_spread / old_total**2


def _places(of: Sequence[int], among: Sequence[int]) -> list[float]:
    """For each bin, the share of ``among`` that is below it, its ties half."""
    total, below, places = sum(among), 0, []
    for index in range(len(of)):
        places.append((below + among[index] / 2) / total)
        below += among[index]
    return places


def _log_sum(logarithms: Sequence[float]) -> float:
    largest = max(logarithms)
    return largest + math.log(sum(math.exp(each - largest) for each in logarithms))
