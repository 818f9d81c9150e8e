"""Models, versions, deployments and rollouts: what they are. Standard library only.

version:  REGISTERED ──► ROLLING_OUT ──► SERVING ──► RETIRED
               └─────────────┴──────────────┴──────► QUARANTINED  (for good)

rollout:  PENDING ──► LOADING ──► CANARY ──► SETTLED
             │            └──────────┴─────► REVERSED
             └──► SUPERSEDED
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

CHAMPION = "champion"
EVERY = "-"
"""In place of a tenant or a model: all of them (AIP-159)."""


class VersionState(StrEnum):
    REGISTERED = "REGISTERED"
    ROLLING_OUT = "ROLLING_OUT"
    SERVING = "SERVING"
    RETIRED = "RETIRED"
    QUARANTINED = "QUARANTINED"


class RolloutState(StrEnum):
    PENDING = "PENDING"
    LOADING = "LOADING"
    CANARY = "CANARY"
    SETTLED = "SETTLED"
    REVERSED = "REVERSED"
    SUPERSEDED = "SUPERSEDED"

    @property
    def is_active(self) -> bool:
        """It holds, or may come to hold, a share of the traffic."""
        return self in (RolloutState.LOADING, RolloutState.CANARY)

    @property
    def has_ended(self) -> bool:
        return self in (RolloutState.SETTLED, RolloutState.REVERSED, RolloutState.SUPERSEDED)


class Tracking(StrEnum):
    """Which checkpoints a deployment wants."""

    EVERY = "EVERY"
    FINAL = "FINAL"


@dataclass(frozen=True)
class Content:
    """A committed directory: where it is, what it is (``sha256:…``), how large."""

    uri: str
    digest: str
    size_bytes: int


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


Strategy = Immediate | Canary


@dataclass(frozen=True)
class Gate:
    """Limits of the compressor's gate; None does not judge."""

    max_perplexity_increase: float | None = 0.02
    min_top1_agreement: float | None = None
    max_size_ratio: float | None = None
    max_latency_seconds: float | None = None
    max_size_bytes: int | None = None


@dataclass(frozen=True)
class QueuePolicy:
    """How requests to a model wait at all gateways; None: as the gateway's settings say."""

    max_queue_size: int | None = None
    default_timeout_seconds: float | None = None


@dataclass(frozen=True)
class Serving:
    """How Triton runs the versions of a model (``service.proto``: Serving); None: the default."""

    instance_count: int | None = None
    max_batch_size: int | None = None
    queue_policy: QueuePolicy = QueuePolicy()


@dataclass(frozen=True)
class HoldRule:
    """How versions are kept loaded that do not serve, because somebody asks for them by name.

    Attributes:
        maximum: of one model at the same time; 0 holds none.
        duration: since a version was asked for last.
        busy: a version that was asked for within it does not make room for another.
    """

    maximum: int = 3
    duration: timedelta = timedelta(seconds=120)
    busy: timedelta = timedelta(seconds=10)


@dataclass(frozen=True)
class RequestKey:
    """Identifies a request (``id``, may be empty) and its content (``digest``)."""

    id: str
    digest: str


@dataclass(frozen=True)
class Deployment:
    """Desired state: how one model is served. ``targets`` are the proto's names, ``recipe`` is the
    compressor's own JSON, passed on as it came."""

    tenant: str
    id: str
    model: str
    create_time: datetime
    update_time: datetime
    tracking: Tracking = Tracking.EVERY
    targets: tuple[str, ...] = ("TARGET_OPENVINO_INT8",)
    gate: Gate = Gate()
    strategy: Strategy = Canary()
    serving: Serving = Serving()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/deployments/{self.id}"

    def wants(self, final: bool) -> bool:
        return final or self.tracking == Tracking.EVERY


@dataclass(frozen=True)
class Model:
    """A line of versions. ``serving_version`` 0: none is served."""

    tenant: str
    id: str
    create_time: datetime
    base_model: str = ""
    serving_version: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/models/{self.id}"


@dataclass(frozen=True)
class Interface:
    """What a client of a version must know of it, read from its artifact.

    ``other_tokens`` are the special tokens but for those two, by transformers' names.
    """

    context_length: int
    chat_template: str
    bos_token: str
    eos_token: str
    other_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """One servable artifact of a model. ``checkpoint`` and ``measurements`` are the fact's own
    JSON, passed on as they came."""

    tenant: str
    model: str
    number: int
    target: str
    artifact: Content
    checkpoint: Mapping[str, Any]
    measurements: Mapping[str, Any]
    compression: str
    create_time: datetime
    traceparent: str
    state: VersionState = VersionState.REGISTERED
    state_reason: str = ""
    interface: Interface | None = None
    retire_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/models/{self.model}/versions/{self.number}"

    @property
    def checkpoint_name(self) -> str:
        return str(self.checkpoint["name"])

    @property
    def may_be_held(self) -> bool:
        """It passed its gate, and was neither reversed nor quarantined."""
        return self.state != VersionState.QUARANTINED and not self.state_reason


@dataclass(frozen=True)
class Traffic:
    """Requests to a version that have ended, and those of them that the engine failed."""

    requests: int = 0
    failures: int = 0

    def since(self, earlier: "Traffic") -> "Traffic":
        return Traffic(self.requests - earlier.requests, self.failures - earlier.failures)


@dataclass(frozen=True)
class Rollout:
    """The road from one version to the next.

    ``new_before`` and ``old_before`` are the counters when the present step began.
    """

    tenant: str
    id: str
    deployment: str
    model: str
    to_version: int
    create_time: datetime
    update_time: datetime
    traceparent: str
    from_version: int = 0
    state: RolloutState = RolloutState.PENDING
    step: int = 0
    traffic_share: float = 0.0
    reason: str = ""
    step_time: datetime | None = None
    finish_time: datetime | None = None
    new_before: Traffic = Traffic()
    old_before: Traffic = Traffic()
    requests: int = 0
    failures: int = 0

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/rollouts/{self.id}"


@dataclass(frozen=True)
class Target:
    """Where one version answers, and its part of the model's requests."""

    version: int
    share: float
    endpoints: tuple[str, ...]
    artifact_digest: str
    interface: Interface
    traceparent: str = ""


@dataclass(frozen=True)
class Route:
    """How requests to one model are spread. ``steps``: of checkpoints, and their versions."""

    tenant: str
    model: str
    triton_model: str
    create_time: datetime
    aliases: Mapping[str, int]
    targets: tuple[Target, ...]
    steps: Mapping[int, int] = field(default_factory=dict)
    queue_policy: QueuePolicy = QueuePolicy()


@dataclass(frozen=True)
class LineageNode:
    name: str
    kind: str
    digest: str = ""


@dataclass(frozen=True)
class LineageEdge:
    cause: str
    effect: str


def lineage_of(
    version: Version, deployment: Deployment
) -> tuple[tuple[LineageNode, ...], tuple[LineageEdge, ...]]:
    """What a version came from, as far as its artifact's fact tells, and where it serves."""
    nodes = (
        LineageNode(version.compression, "compression", version.artifact.digest),
        LineageNode(version.name, "version", version.artifact.digest),
        LineageNode(deployment.name, "deployment"),
    )
    edges = (
        LineageEdge(version.checkpoint_name, version.compression),
        LineageEdge(version.compression, version.name),
        LineageEdge(version.name, deployment.name),
    )
    return nodes, edges


def triton_model_name(tenant: str, model: str) -> str:
    """The model's name on Triton, where only letters, digits, ``.``, ``-`` and ``_`` are safe.

    An id with other characters (``ft:demo:acme:docs:k3x9``) gets a part of its hash, so that no
    two models share a name.
    """
    safe = model.replace(":", ".")
    if safe != model:
        safe = f"{safe}.{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"{tenant}.{safe}"


def utc_now() -> datetime:
    return datetime.now(UTC)
