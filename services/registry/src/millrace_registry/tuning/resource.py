"""A search for settings as it is kept.

QUEUED ──► RUNNING ──► SUCCEEDED
   │          ├──────► FAILED
   └──────────┴──────► CANCELLED

Who takes over a search that is RUNNING goes on with it, under a higher epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import TypeAdapter

from millrace_registry.domain import QueuePolicy, Serving
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial import Trial

_WHAT_THERE_IS = Limits(0, 0, 0, 0)
_OTHER_LOOKS = 3  # at the present settings, at them again, at the best candidate again


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def has_ended(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


UNENDED = tuple(state.value for state in State if not state.has_ended)


@dataclass(frozen=True)
class Wish:
    """What is to be searched; in ``limits`` 0 stands for what the machine has.

    ``source``: where the traffic's shape is from (``service.proto``: TrafficShape.Source).
    """

    target: Target
    traffic: tuple[tuple[int, int], ...] = ()
    requests_per_second: float = 0.0
    source: str = "SOURCE_UNSPECIFIED"
    trials: int = 8
    seconds: float = 4.0
    seed: int = 0
    limits: Limits = _WHAT_THERE_IS
    is_dry_run: bool = False
    with_queue: bool = False

    @property
    def looks(self) -> int:
        """At most so many."""
        return self.trials + _OTHER_LOOKS


@dataclass(frozen=True)
class Plan:
    """What all looks of one search stand on, whoever takes them: fixed when it begins."""

    version: int
    present: Serving
    limits: Limits


@dataclass(frozen=True)
class Progress:
    """``completed`` of ``total`` looks; ``metrics`` are requests a second within the target."""

    phase: str = ""
    completed: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    reason: str
    message: str


@dataclass(frozen=True)
class Result:
    """``service.proto``: ServingResult. ``winner``: a trial's number."""

    winner: int
    is_better: bool
    reason: str
    noise: float
    queue_policy: QueuePolicy | None = None
    is_written: bool = False


@dataclass(frozen=True)
class ServingTuning:
    """One search. ``trials`` are empty in lists."""

    tenant: str
    id: str
    deployment: str
    model: str
    wish: Wish
    create_time: datetime
    state: State = State.QUEUED
    progress: Progress = Progress()
    failure: Failure | None = None
    plan: Plan | None = None
    trials: tuple[Trial, ...] = ()
    result: Result | None = None
    traceparent: str = ""
    start_time: datetime | None = None
    finish_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/serving_tunings/{self.id}"


CANCELLED = Failure("CANCELLED", "cancelled by its user; nothing was changed")

WISH: TypeAdapter[Wish] = TypeAdapter(Wish)
PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)
RESULT: TypeAdapter[Result] = TypeAdapter(Result)
"""As JSON."""
