"""Rolling restarts of every service while clients ask, and no request may fail."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from millrace_mesh import control
from millrace_mesh.layout import SERVICES
from tests.chaos import chaos_mesh
from tests.chaos.outcome import Outcome, Say, percentile
from tests.chaos.upgrade_load import Load
from tests.e2e.lifecycle import ENDED, RECIPE, Mesh

# What the supervisor gives a process from SIGTERM to SIGKILL (``processes.py``).
GRACE_SECONDS = 15.0
_STEPS, _EVERY = 20, 10


@dataclass
class Restarts:
    """What rolling restarts came to."""

    violations: list[str] = field(default_factory=list)
    drain_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: list[float] = field(default_factory=list)

    def restart(self, mesh: Mesh, services: Sequence[str]) -> None:
        """Restart ``services`` in turn; each must be another process afterwards."""
        for service in services:
            before, started = mesh.pid(service), time.monotonic()
            drained = control.restart(mesh.layout.home, [service])
            self.seconds.append(time.monotonic() - started)
            self.drain_seconds[service].append(drained[service])
            if mesh.pid(service) == before:
                self.violations.append(f"{service} was not restarted")
            if drained[service] >= GRACE_SECONDS:
                self.violations.append(f"{service} did not drain within its grace")


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Restart all services in turn, in a drawn order, until ``runs`` restarts were made."""
    order = random.Random(seed)
    restarts = Restarts()
    with chaos_mesh.running(directory) as started:
        mesh = started.mesh
        dataset, model = _served_model(mesh, say)
        load, work = Load(mesh, model), list[str]()
        load.start()
        try:
            rounds = max(1, round(runs / len(SERVICES)))
            for number in range(1, rounds + 1):
                if not work or mesh.get(f"/training/runs/{work[-1]}")["status"] in ENDED:
                    work.append(start_work(mesh, f"work-{number}", dataset))
                restarts.restart(mesh, order.sample(SERVICES, len(SERVICES)))
                say(f"{number} of {rounds} rounds, {len(load.failures)} requests failed")
        finally:
            load.stop()
        for training in work:
            restarts.violations += unfinished(mesh, training)
    return outcome(restarts, load)


def outcome(restarts: Restarts, load: Load) -> Outcome:
    requests = sum(load.requests.values())
    drains = [seconds for each in restarts.drain_seconds.values() for seconds in each]
    return Outcome(
        "upgrades",
        len(restarts.seconds),
        [*restarts.violations, *load.failures],
        {
            "requests": requests,
            "requests_failed": len(load.failures),
            "request_p50_seconds": percentile(load.seconds, 0.5),
            "request_p99_seconds": percentile(load.seconds, 0.99),
            "request_slowest_seconds": max(load.seconds, default=0.0),
            "restart_p50_seconds": percentile(restarts.seconds, 0.5),
            "drain_p50_seconds": percentile(drains, 0.5),
            "drain_longest_seconds": max(drains, default=0.0),
            **{
                f"drain_longest_of_{service}_seconds": max(seconds)
                for service, seconds in restarts.drain_seconds.items()
            },
            "streams_ended_by_typed_error": load.restarted_streams,
            "event_streams_resumed": load.resumed_streams,
        },
    )


def start_work(mesh: Mesh, model: str, dataset: str) -> str:
    """A training run that is in hand while its service is restarted."""
    return mesh.start_run(model, dataset, total_steps=_STEPS, checkpoint_every_steps=_EVERY)


def unfinished(mesh: Mesh, run: str) -> list[str]:
    """What is missing of a training run that ``start_work`` began."""
    ended = mesh.ended(f"/training/runs/{run}")
    if ended["status"] != "succeeded":
        return [f"{run} ended as {ended['status']}: {ended['error']}"]
    steps = [c["step"] for c in mesh.get(f"/training/runs/{run}/checkpoints")["data"]]
    wanted = list(range(_STEPS, 0, -_EVERY))
    return [] if steps == wanted else [f"{run} has checkpoints {steps}, not {wanted}"]


def _served_model(mesh: Mesh, say: Say) -> tuple[str, str]:
    """A dataset, and a model trained from it whose first checkpoint is served."""
    source = {"type": "python_standard_library"}
    dataset = str(mesh.post("/datasets", {"source": source, "recipe": RECIPE})["id"])
    mesh.ended(f"/datasets/{dataset}")
    mesh.ended(f"/training/runs/{mesh.start_run('served', dataset)}")

    def answers() -> bool:
        body = {"model": "served", "prompt": "import", "max_tokens": 1}
        return mesh.rest.post("/completions", json=body).status_code == 200

    mesh.until(answers, "the model answers", 240)
    say("a model is served")
    return dataset, "served"
