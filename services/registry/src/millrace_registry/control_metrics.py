"""What the controller tells Prometheus."""

from prometheus_client import Gauge, Histogram

READY = Gauge("millrace_versions_ready", "Versions that answered on Triton.")
SETTLE_SECONDS = Histogram(
    "millrace_rollout_duration_seconds",
    "Time from a rollout's start of loading to its end.",
    ["outcome"],
    buckets=(1, 2, 5, 10, 20, 40, 80, 160, 320),
)
