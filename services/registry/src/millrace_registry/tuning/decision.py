"""Whether other settings take the place of the present ones. Standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_NOISE = 0.05
"""Two looks are never taken to be closer than this share of the higher."""


@dataclass(frozen=True)
class Decision:
    """``noise``: how far two looks at the same settings are apart, as a share."""

    is_better: bool
    noise: float
    reason: str


def noise_of(scores: Sequence[float]) -> float:
    """How far looks at the same settings are apart, as a share of the highest."""
    highest = max(scores, default=0.0)
    return max(LEAST_NOISE, (highest - min(scores)) / highest if highest else 0.0)


def decide(present: float, control: float, best: float, confirmation: float) -> Decision:
    """Whether the best candidate takes the place of the present settings.

    All are requests a second within the latency target; 0: no rate was. The lower of the
    candidate's two figures, the best of many, must be above the higher of the present's by more
    than the noise, so that luck changes nothing.
    """
    higher, lower = max(present, control), min(best, confirmation)
    noise = noise_of((present, control))
    if lower <= 0:
        why = "the present settings stay" if higher else "nothing that was tried meets the target"
        return Decision(False, noise, why)
    if lower <= higher * (1 + noise):
        return Decision(
            False, noise, f"nothing is better than the present settings by more than {noise:.0%}"
        )
    if not higher:
        return Decision(True, noise, "the present settings do not meet the target")
    return Decision(True, noise, f"{lower / higher - 1:.0%} more requests within the target")
