"""What a compression is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

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
    OPENVINO_INT8_ACTIVATIONS = "openvino-int8-activations"
    OPENVINO_INT4 = "openvino-int4"
    SAFETENSORS_BF16 = "safetensors-bf16"
    ONNX_INT8 = "onnx-int8"
    ONNX_INT8_DYNAMIC = "onnx-int8-dynamic"
    COMPRESSED_TENSORS_W8A8 = "compressed-tensors-w8a8"
    COMPRESSED_TENSORS_FP8 = "compressed-tensors-fp8"
    COMPRESSED_TENSORS_W4A16 = "compressed-tensors-w4a16"
    COMPRESSED_TENSORS_SPARSE_2_4 = "compressed-tensors-sparse-2-4"
    TENSORRT_FP16 = "tensorrt-fp16"
    TENSORRT_INT8 = "tensorrt-int8"
    TENSORRT_FP8 = "tensorrt-fp8"
    SAFETENSORS_PRUNED = "safetensors-pruned"
    AUTO = "auto"


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
    max_size_bytes: int | None = None
    max_task_score_decrease: float | None = None
    min_task_score: float | None = None


@dataclass(frozen=True)
class Parity:
    """Whether an artifact says what the model in training said of ``probes`` fixed probes."""

    probes: int
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Load:
    """Speed with some streams at the same time (``service.proto``: LoadMeasurement)."""

    streams: int
    tokens_per_second: float
    first_token_seconds: float
    token_seconds: float


@dataclass(frozen=True)
class Measurements:
    """Original beside artifact, on the same held-out windows. None: not measured, or not finite.

    ``parity`` is None where there is nothing to compare with: a checkpoint without probes.
    ``weight_shares``: of the weights' elements, by the precision that the artifact keeps them in.
    ``calibration`` is ``service.proto``'s CalibrationRecord as JSON; None: it was not calibrated.
    ``search`` is its SearchRecord; None: the target left nothing to be searched for.
    ``task`` is its TaskMeasurement; None: no task was named.
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
    original_loads: tuple[Load, ...] = ()
    artifact_loads: tuple[Load, ...] = ()
    weight_shares: Mapping[str, float] = field(default_factory=dict)
    original_memory_bytes: int | None = None
    artifact_memory_bytes: int | None = None
    original_load_seconds: float | None = None
    calibration: Mapping[str, Any] | None = None
    search: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None

    @property
    def chosen(self) -> Mapping[str, Any] | None:
        """The trial of a search that is the artifact."""
        trials = self.search["trials"] if self.search else ()
        return next((trial for trial in trials if trial["chosen"]), None)


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
    """A compression that is asked for: one checkpoint for one target, judged by one gate.

    ``recipe`` is ``service.proto``'s Recipe as JSON; what is absent is the target's default.
    ``task`` is its Task as JSON; empty: none is named.
    """

    tenant: str
    checkpoint: Checkpoint
    target: Target
    gate: GatePolicy
    deployment: str = ""
    requested_time: datetime | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)


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
