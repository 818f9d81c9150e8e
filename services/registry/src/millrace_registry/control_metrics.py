"""What the controller tells Prometheus."""

from collections.abc import Mapping
from datetime import datetime

from prometheus_client import Gauge, Histogram

from millrace_registry.domain import Rollout

READY = Gauge("millrace_versions_ready", "Versions that answered on Triton.")
MEMORY_BUDGET = Gauge(
    "millrace_endpoint_memory_budget_bytes",
    "What the versions on an endpoint may take of its memory.",
    ["endpoint"],
)
MEMORY_PLANNED = Gauge(
    "millrace_endpoint_memory_planned_bytes",
    "What those that are loaded, or may be now, take or are expected to.",
    ["endpoint"],
)
SETTLE_SECONDS = Histogram(
    "millrace_rollout_duration_seconds",
    "Time from a rollout's start of loading to its end.",
    ["outcome"],
    buckets=(1, 2, 5, 10, 20, 40, 80, 160, 320),
)
_TO_SETTLED = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
CHECKPOINT_SECONDS = Histogram(
    "millrace_checkpoint_to_settled_seconds",
    "Time from a checkpoint's end until all traffic goes to its version.",
    buckets=_TO_SETTLED,
)
STAGE_SECONDS = Histogram(
    "millrace_checkpoint_stage_seconds",
    "The part of it in each stage.",
    ["stage"],
    buckets=(0.1, 0.25, 0.5, *_TO_SETTLED),
)


def observe_duration(rollout: Rollout, outcome: str, now: datetime) -> None:
    """Count a rollout that ends now."""
    began = rollout.step_time or rollout.create_time
    SETTLE_SECONDS.labels(outcome).observe((now - began).total_seconds())


def observe_stages(seconds: Mapping[str, float]) -> None:
    """Count a rollout that has settled (``stages.stage_seconds``)."""
    for stage, took in seconds.items():
        if stage == "total":
            CHECKPOINT_SECONDS.observe(took)
        else:
            STAGE_SECONDS.labels(stage).observe(took)
