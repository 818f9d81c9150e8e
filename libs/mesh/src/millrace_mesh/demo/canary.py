"""How Triton itself saw each canary: its own counts of inferences, version by version."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from millrace_client.errors import MillraceError
from millrace_mesh.demo.session import Session
from millrace_mesh.demo.traffic import Traffic
from millrace_mesh.triton import GRPC_HEADER

_SAMPLE_SECONDS = 0.5
_TENANT = "default"


@dataclass
class Split:
    """What happened while one rollout was in canary, by version.

    Attributes:
        before, after: Triton's counts of requests that succeeded: clients', and the questions
            that the registry asks itself where clients ask too few.
        answered_before, answered_after: the demo's own, as the gateway's answers told.
    """

    to_version: int
    share: float
    before: Mapping[int, int]
    answered_before: Mapping[int, int]
    after: Mapping[int, int] = field(default_factory=dict)
    answered_after: Mapping[int, int] = field(default_factory=dict)

    @property
    def counts(self) -> dict[int, int]:
        return _difference(self.before, self.after)

    @property
    def answered(self) -> dict[int, int]:
        return _difference(self.answered_before, self.answered_after)

    def __str__(self) -> str:
        return (
            f"canary of version {self.to_version} at {self.share:.0%}: "
            f"the demo was answered by {_shares(self.answered)}; Triton's own statistics, with "
            f"the registry's questions: {_shares(self.counts)}"
        )


class CanaryWatch:
    """A thread that reads Triton's statistics while rollouts are in canary."""

    def __init__(self, session: Session, traffic: Traffic) -> None:
        self.splits: dict[str, Split] = {}
        self._session = session
        self._traffic = traffic
        self._model = session.plan.model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        key = (self._session.layout.home.secrets / "triton-control-key").read_text()
        address = self._session.layout.address("triton.grpc")
        with InferenceServerClient(address) as triton:
            while not self._stop.wait(_SAMPLE_SECONDS):
                try:
                    self._sample(triton, {GRPC_HEADER: key})
                except (MillraceError, InferenceServerException):
                    continue  # one of them restarts; the next sample will do

    def _sample(self, triton: InferenceServerClient, headers: dict[str, str]) -> None:
        for rollout in self._session.api.rollouts.list(5, model=self._model):
            if rollout["status"] != "canary":
                continue
            counts = inference_counts(triton, f"{_TENANT}.{self._model}", headers)
            split = self.splits.get(rollout["id"])
            answered = _by_version(self._traffic)
            if split is None:
                share = rollout["traffic_share"]
                split = Split(rollout["to_version"], share, counts, answered)
                self.splits[rollout["id"]] = split
            split.after, split.answered_after = counts, answered


@contextmanager
def watched(session: Session, traffic: Traffic) -> Iterator[CanaryWatch]:
    """Watch the model's canaries while the block runs."""
    watch = CanaryWatch(session, traffic)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def inference_counts(
    triton: InferenceServerClient, model: str, headers: dict[str, str]
) -> dict[int, int]:
    """Triton's count of successful requests since each version was loaded."""
    statistics = triton.get_inference_statistics(model, headers=headers, as_json=True)
    counts: dict[int, int] = defaultdict(int)
    for version in statistics.get("model_stats", ()):
        success = version.get("inference_stats", {}).get("success", {})
        counts[int(version["version"])] += int(success.get("count", 0))
    return dict(counts)


def _by_version(traffic: Traffic) -> dict[int, int]:
    return {int(name.rpartition("@")[2]): count for name, count in dict(traffic.answered).items()}


def _difference(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, int]:
    versions = sorted({*before, *after})
    counts = {version: after.get(version, 0) - before.get(version, 0) for version in versions}
    return {version: count for version, count in counts.items() if count}


def _shares(counts: Mapping[int, int]) -> str:
    total = sum(counts.values())
    parts = [f"version {version}: {n} ({n / total:.0%})" for version, n in counts.items()]
    return ", ".join(parts) or "none"
