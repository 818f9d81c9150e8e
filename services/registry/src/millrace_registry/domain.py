"""Models, versions, deployments and rollouts: what they are. Standard library only.

version:  REGISTERED ──► ROLLING_OUT ──► SERVING ──► RETIRED
               └─────────────┴──────────────┴──────► QUARANTINED  (for good, unless by a recall
                                                                     that is lifted)

rollout:  PENDING ──► LOADING ─┬─► CANARY ───────────────┬─► SETTLED
             │                 ├─► SHADOW (─► CANARY) ───┤
             │                 ├─► STANDBY ─► SWITCHED ──┤
             │                 └─► SPLIT ────────────────┤
             └──► SUPERSEDED   (from any of these) ──────┴─► REVERSED
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from millrace_registry.strategies import Analysis, Canary, Stage, Strategy
from millrace_registry.traffic import Comparison, Seen, Traffic

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
    SHADOW = "SHADOW"
    STANDBY = "STANDBY"
    SWITCHED = "SWITCHED"
    SPLIT = "SPLIT"

    @property
    def is_judged(self) -> bool:
        """Its version has answered, and is compared with the one before it."""
        return self in _JUDGED

    @property
    def is_active(self) -> bool:
        """It holds, or may come to hold, a share of the traffic."""
        return self == RolloutState.LOADING or self.is_judged

    @property
    def has_ended(self) -> bool:
        return self in (RolloutState.SETTLED, RolloutState.REVERSED, RolloutState.SUPERSEDED)


_JUDGED = frozenset(
    (
        RolloutState.CANARY,
        RolloutState.SHADOW,
        RolloutState.STANDBY,
        RolloutState.SWITCHED,
        RolloutState.SPLIT,
    )
)
UNENDED = tuple(state.value for state in RolloutState if not state.has_ended)


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
class Gate:
    """Limits of the compressor's gate; None does not judge."""

    max_perplexity_increase: float | None = 0.02
    min_top1_agreement: float | None = None
    max_size_ratio: float | None = None
    max_latency_seconds: float | None = None
    max_size_bytes: int | None = None
    max_task_score_decrease: float | None = None
    min_task_score: float | None = None


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
    threads: int | None = None
    cache_gibibytes: int | None = None


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
    """Desired state: how one model is served. ``targets`` are the proto's names; ``recipe`` and
    ``task`` (empty: none) are the compressor's own JSON, passed on as it came."""

    tenant: str
    id: str
    model: str
    create_time: datetime
    update_time: datetime
    tracking: Tracking = Tracking.EVERY
    targets: tuple[str, ...] = ("TARGET_OPENVINO_INT8",)
    gate: Gate = Gate()
    strategy: Strategy = field(default_factory=Canary)
    serving: Serving = Serving()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    analysis: Analysis = field(default_factory=Analysis)
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
    tags: Mapping[str, str] = field(default_factory=dict)

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
    compress_start_time: datetime | None = None
    compress_finish_time: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

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
class Rollout:
    """The road from one version to the next.

    ``new_before``, ``old_before`` and ``shadow_before`` are the counters when the present step
    began, ``seen`` what it has seen so far. ``mirror_share`` of the requests goes to the new
    version too. While it is ``paused`` it takes no step forward. ``evidence``: the figures of the
    present step, as ``service.proto``: RolloutEvidence in JSON; ``answers_before``: what it began
    with (``evidence_store``). ``load_time``, ``ready_time``: when it was first to be loaded, and
    when its version first answered.
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
    new_before: Traffic = field(default_factory=Traffic)
    old_before: Traffic = field(default_factory=Traffic)
    requests: int = 0
    failures: int = 0
    shadow_before: Comparison = field(default_factory=Comparison)
    paused: bool = False
    mirror_share: float = 0.0
    stage: Stage = field(default_factory=Stage)
    seen: Seen = field(default_factory=Seen)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    answers_before: Mapping[str, Any] = field(default_factory=dict)
    load_time: datetime | None = None
    ready_time: datetime | None = None

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/rollouts/{self.id}"

    @property
    def before(self) -> Seen:
        return Seen(self.new_before, self.old_before, self.shadow_before)

    @property
    def can_be_promoted(self) -> bool:
        """Its version answers."""
        return self.state.is_judged or (
            self.state == RolloutState.LOADING and self.ready_time is not None
        )


@dataclass(frozen=True)
class Target:
    """Where one version answers, and its part of the model's requests: those that it answers,
    and those that are mirrored to it."""

    version: int
    share: float
    endpoints: tuple[str, ...]
    artifact_digest: str
    interface: Interface
    traceparent: str = ""
    mirror_share: float = 0.0


@dataclass(frozen=True)
class Route:
    """How requests to one model are spread. ``steps``: of checkpoints, and their versions.

    ``split``: not empty while users are split between versions (``service.proto``: Route).
    """

    tenant: str
    model: str
    triton_model: str
    create_time: datetime
    aliases: Mapping[str, int]
    targets: tuple[Target, ...]
    steps: Mapping[int, int] = field(default_factory=dict)
    queue_policy: QueuePolicy = QueuePolicy()
    split: str = ""


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
