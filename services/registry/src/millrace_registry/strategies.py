"""How traffic moves to a new version: what a deployment may say (``service.proto``:
RolloutStrategy), and what each step asks for. Standard library only.

    Immediate   all traffic at once
    Canary      a rising share of the requests
    Shadow      a share of the requests is mirrored; then all traffic, or a canary
    BlueGreen   all traffic at once after checks; the way back stays open for a while
    Split       a share of the users, for a time (A/B)
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Immediate:
    """All traffic at once, when the new version has answered a question."""


@dataclass(frozen=True)
class Canary:
    """A rising share of the traffic (``app.proto``: CanaryStrategy)."""

    steps: tuple[float, ...] = (0.25,)
    bake_seconds: float = 3.0
    minimum_requests: int = 8
    maximum_error_rate_increase: float = 0.05


@dataclass(frozen=True)
class Shadow:
    """``share`` of the requests is sent to the new version too; the old one alone answers.

    ``then_canary``: what follows; None: all traffic at once.
    """

    share: float = 0.1
    bake_seconds: float = 60.0
    minimum_requests: int = 20
    maximum_error_rate_increase: float = 0.05
    then_canary: Canary | None = None


@dataclass(frozen=True)
class BlueGreen:
    """No traffic until the checks are passed, then all of it.

    ``keep_seconds``: how long the old version stays loaded afterwards.
    """

    bake_seconds: float = 3.0
    minimum_requests: int = 8
    maximum_error_rate_increase: float = 0.05
    keep_seconds: float = 600.0


class SplitEnd(StrEnum):
    """What becomes of the new version when its test has ended."""

    PROMOTE_BETTER = "PROMOTE_BETTER"
    KEEP_OLD = "KEEP_OLD"
    PROMOTE_UNLESS_WORSE = "PROMOTE_UNLESS_WORSE"


@dataclass(frozen=True)
class Split:
    """``share`` of the users is answered by the new version, each always by the same one."""

    share: float = 0.5
    duration_seconds: float = 3600.0
    minimum_requests: int = 20
    maximum_error_rate_increase: float = 0.05
    on_end: SplitEnd = SplitEnd.PROMOTE_BETTER


@dataclass(frozen=True)
class Analysis:
    """How a new version is compared (``service.proto``: Analysis). None: the default, which is
    ``analysis.AnalysisPolicy``'s."""

    false_alarm_rate: float | None = None
    maximum_latency_increase: float | None = None
    maximum_cut_increase: float | None = None
    maximum_score_decrease: float | None = None
    minimum_pairs: int | None = None
    minimum_timed_answers: int | None = None


Strategy = Immediate | Canary | Shadow | BlueGreen | Split

KINDS: dict[str, type[Strategy]] = {
    "immediate": Immediate,
    "canary": Canary,
    "shadow": Shadow,
    "blue_green": BlueGreen,
    "split": Split,
}
"""By the names of the proto's fields."""


def kind_of(strategy: Strategy) -> str:
    return next(kind for kind, known in KINDS.items() if isinstance(strategy, known))


@dataclass(frozen=True)
class Stage:
    """What a step of a rollout asks for before the next one.

    Attributes:
        strategy: as in ``KINDS``.
        seconds: how long it lasts at least.
        minimum_requests: answers that the new version must have given in it.
        maximum_error_rate_increase: failed share of its requests above the old version's.
        steps: of the canary; 1 for what has no steps.
    """

    strategy: str = ""
    seconds: float = 0.0
    minimum_requests: int = 0
    maximum_error_rate_increase: float = 0.0
    steps: int = 1
