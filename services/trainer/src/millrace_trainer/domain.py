"""Training runs and checkpoints: what they are, and which states a run goes through.

    QUEUED ──► RUNNING ──► SUCCEEDED | FAILED
      │  ▲        │
      │  └──────PAUSED◄── (from QUEUED too)
      └───────────┴──────► CANCELLED

A QUEUED run waits for its dataset, then for a worker. A run in one of SUCCEEDED, FAILED and
CANCELLED never changes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

MAXIMUM_ATTEMPTS = 5
"""Tries that may crash one after another; a new checkpoint between two begins the count anew."""
# Nobody's mistake, worth another try; anything else is said by the job and final.
RETRIED_REASONS = frozenset({"CRASHED", "INTERNAL"})
RETRY_PHASE = "retry"


class State(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Content:
    """A committed directory: where it is, what it is (``sha256:…``), how large."""

    uri: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Failure:
    reason: str
    message: str


@dataclass(frozen=True)
class Progress:
    phase: str = ""
    completed: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestKey:
    """Identifies a request (``id``, may be empty) and its content (``digest``)."""

    id: str
    digest: str


@dataclass(frozen=True)
class Run:
    """One training of one model. ``architecture`` and ``hyperparameters`` are complete.

    ``dataset`` is None until the dataset is ready.
    """

    tenant: str
    id: str
    model: str
    dataset_name: str
    architecture: Mapping[str, int]
    hyperparameters: Mapping[str, float | int]
    create_time: datetime
    update_time: datetime
    traceparent: str
    initial_checkpoint: str = ""
    dataset: Content | None = None
    state: State = State.QUEUED
    progress: Progress = Progress()
    failure: Failure | None = None
    parameter_count: int = 0
    has_started: bool = False

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/runs/{self.id}"


@dataclass(frozen=True)
class Checkpoint:
    """What a run had learned at one step. Immutable."""

    tenant: str
    run_id: str
    id: str
    model: str
    step: int
    tokens_seen: int
    train_loss: float
    heldout_loss: float | None
    final: bool
    content: Content
    dataset_name: str
    dataset: Content
    create_time: datetime

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/runs/{self.run_id}/checkpoints/{self.id}"


@dataclass(frozen=True)
class Metric:
    """What was measured at one step."""

    step: int
    time: datetime
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunStarted:
    run: Run


@dataclass(frozen=True)
class RunEnded:
    """It succeeded, failed or was cancelled: its state says which."""

    run: Run


@dataclass(frozen=True)
class CheckpointFinished:
    checkpoint: Checkpoint


Fact = RunStarted | RunEnded | CheckpointFinished


def back_off(attempts: int, first: timedelta) -> timedelta:
    """How long to wait after so many crashes in a row: ``first``, then twice as long each time."""
    factor: int = 2 ** max(0, attempts - 1)
    return first * factor


def utc_now() -> datetime:
    return datetime.now(UTC)
