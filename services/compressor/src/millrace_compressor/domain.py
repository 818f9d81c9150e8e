"""What a compression is."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from millrace_runtime.parity import Stage

MAXIMUM_ATTEMPTS = 3
# The job's own faults, worth another try; anything else is said by the job and final.
RETRIED_REASONS = frozenset({"CRASHED", "INTERNAL"})


class State(StrEnum):
    """QUEUED → RUNNING → one of the last three."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def has_ended(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Target(StrEnum):
    """What a checkpoint is compressed for; the value is the job's name for it."""

    OPENVINO_INT8 = "openvino-int8"
    OPENVINO_FP32 = "openvino-fp32"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class Failure:
    reason: str
    message: str


CANCELLED = Failure("CANCELLED", "cancelled by its user")
SUPERSEDED = Failure("SUPERSEDED", "a newer checkpoint of its run came before its turn")


@dataclass(frozen=True)
class Content:
    """A committed directory: where it is, what it is (``sha256:…``), how large."""

    uri: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """What is compressed, and the held-out data that judges the result."""

    name: str
    model: str
    step: int
    final: bool
    content: Content
    evaluation: Content


@dataclass(frozen=True)
class GatePolicy:
    """Limits; None does not judge."""

    max_perplexity_increase: float | None = None
    min_top1_agreement: float | None = None
    max_size_ratio: float | None = None
    max_latency_seconds: float | None = None


@dataclass(frozen=True)
class Parity:
    """Whether an artifact says what the model in training said of ``probes`` fixed probes."""

    probes: int
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Measurements:
    """Original beside artifact, on the same held-out windows. None: not measured, or not finite.

    ``parity`` is None where there is nothing to compare with: a checkpoint without probes.
    """

    original_perplexity: float | None = None
    artifact_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    original_size_bytes: int = 0
    artifact_size_bytes: int = 0
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    token_seconds: float | None = None
    peak_memory_bytes: int = 0
    evaluated_tokens: int = 0
    parity: Parity | None = None


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    phase: str = ""
    completed: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """A compression that is asked for: one checkpoint for one target, judged by one gate."""

    tenant: str
    checkpoint: Checkpoint
    target: Target
    gate: GatePolicy
    deployment: str = ""
    requested_time: datetime | None = None


@dataclass(frozen=True)
class Compression:
    """One checkpoint x target x recipe; there is never a second row for the same three."""

    id: str
    order: Order
    traceparent: str
    create_time: datetime
    state: State = State.QUEUED
    progress: Progress = Progress()
    failure: Failure | None = None
    verdict: Verdict | None = None
    measurements: Measurements | None = None
    artifact: Content | None = None
    start_time: datetime | None = None
    finish_time: datetime | None = None

    @property
    def tenant(self) -> str:
        return self.order.tenant

    @property
    def name(self) -> str:
        return f"tenants/{self.order.tenant}/compressions/{self.id}"


def utc_now() -> datetime:
    return datetime.now(UTC)
