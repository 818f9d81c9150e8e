"""Two replicas of everything, stopped and killed in turn: the end is the undisturbed one.

Real services on one PostgreSQL and one nats-server share their consumers, reconcilers, workers
and one Triton (played: it obeys whoever asks, and keeps who did). Whole lifecycles run: dataset,
run, checkpoints, compressions, versions, rollouts, then a tuning job and its own way to serving.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from millrace_testkit.servers import wait_until
from tests.chaos import fencing_audit
from tests.chaos.fencing import postgres
from tests.chaos.fencing_stages import STEPS
from tests.chaos.outcome import Outcome, Say
from tests.chaos.replica_mesh import LEASE_SECONDS, STAGES, Replica, ReplicaMesh

_STEP_SECONDS = 120.0
_QUIET_SECONDS = 60.0
_AT_ONCE = 3

_SERVES = """
SELECT 1 FROM registry.versions v
WHERE v.model = :model AND v.state = 'SERVING' AND (v.checkpoint->>'final')::boolean
"""
# What must be empty at the end, and what that would mean.
_EMPTY = {
    "a dataset that is not SUCCEEDED": """
        SELECT id, state FROM data.datasets WHERE state <> 'SUCCEEDED'""",
    "a run that is not SUCCEEDED": """
        SELECT id, state FROM trainer.runs WHERE state <> 'SUCCEEDED'""",
    "a job that is not SUCCEEDED": """
        SELECT id, state, failure_message FROM tuner.jobs WHERE state <> 'SUCCEEDED'""",
    "a compression that neither succeeded nor was superseded": """
        SELECT id, state, failure_reason FROM compressor.compressions
        WHERE state <> 'SUCCEEDED' AND NOT (state = 'CANCELLED' AND NOT checkpoint_final)""",
    "a checkpoint that was not compressed": """
        SELECT id FROM (SELECT content->>'digest' AS digest, id FROM trainer.checkpoints
            UNION ALL SELECT digest, id FROM tuner.checkpoints) c
        WHERE digest NOT IN (SELECT checkpoint_digest FROM compressor.compressions)""",
    "a checkpoint compressed more than once for one target": """
        SELECT checkpoint_name, target, count(*) FROM compressor.compressions
        GROUP BY tenant, checkpoint_name, target HAVING count(*) > 1""",
    "an artifact without its version": """
        SELECT id FROM compressor.compressions WHERE state = 'SUCCEEDED' AND NOT EXISTS (
            SELECT 1 FROM registry.versions v WHERE v.compression LIKE '%/' || compressions.id)""",
    "an artifact with two versions": """
        SELECT compression, count(*) FROM registry.versions GROUP BY compression
        HAVING count(*) > 1""",
    "a version with other than one rollout": """
        SELECT v.model, v.number, count(r.id) FROM registry.versions v LEFT JOIN registry.rollouts r
            ON r.model = v.model AND r.to_version = v.number
        GROUP BY v.model, v.number HAVING count(r.id) <> 1""",
    "a rollout that was not settled or superseded": """
        SELECT id, model, to_version, state, reason FROM registry.rollouts
        WHERE state NOT IN ('SETTLED', 'SUPERSEDED')""",
    "a model whose last checkpoint does not serve": """
        SELECT m.id, m.serving_version FROM registry.models m WHERE NOT EXISTS (
            SELECT 1 FROM registry.versions v WHERE v.model = m.id AND v.state = 'SERVING'
            AND v.number = m.serving_version AND (v.checkpoint->>'final')::boolean)""",
    **{
        f"a fact of the {stage} that was not published": f"""
        SELECT id FROM {stage}.outbox WHERE published_in IS NULL"""
        for stage in STAGES
    },
}
# What one fact is about; of each there may be one.
_ABOUT = ("compression", "checkpoint", "version", "rollout", "run", "job", "dataset", "file")


def run(runs: int, seed: int, directory: Path, say: Say) -> Outcome:
    """Disturb replicas ``runs`` times while lifecycles go on, three at once; then let all end."""
    chance = random.Random(seed)
    with postgres() as server:
        mesh = ReplicaMesh(server.url, directory, chance)
        try:
            fencing_audit.prepare(mesh.administration)
            mesh.start()
            fencing_audit.watch(mesh.administration, "registry", ["controllers"])
            say("everything is there, twice")
            return _disturb(mesh, runs, chance, say)
        finally:
            mesh.stop()


def _disturb(mesh: ReplicaMesh, runs: int, chance: random.Random, say: Say) -> Outcome:
    counts: Counter[str] = Counter()
    enough = threading.Event()
    lifecycles = Lifecycles(mesh, enough)
    threads = [
        threading.Thread(target=lifecycles.go_on, args=(number,)) for number in range(_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for made in range(runs):
        if lifecycles.violations:
            break
        time.sleep(chance.uniform(0.1, 0.8))
        replica = chance.choice(mesh.replicas)
        counts[_disturb_one(mesh, replica, chance)] += 1
        if made % 20 == 19:
            say(f"{made + 1} of {runs} disturbances, {lifecycles.count} lifecycles")
    enough.set()
    for thread in threads:
        thread.join()
    say(f"{lifecycles.count} lifecycles have ended")
    violations = [*lifecycles.violations, *_wrong_at_the_end(mesh)]
    late = late_calls(mesh)
    figures = {
        **{f"{kind}_count": count for kind, count in counts.items()},
        "lifecycles_count": lifecycles.count,
        "triton_changes_count": len(mesh.triton.calls),
        "triton_changes_past_the_lease_count": late,
    }
    return Outcome("replicas", counts.total(), violations, figures)


def _disturb_one(mesh: ReplicaMesh, replica: Replica, chance: random.Random) -> str:
    """SIGSTOP for less or more than a lease, or SIGKILL and a new start; which it was."""
    if chance.random() < 1 / 3:
        replica.end()
        time.sleep(chance.uniform(0, 0.5))
        mesh.start_again(replica)
        wait_until(lambda: replica.is_ready, _STEP_SECONDS, f"{replica.name} is ready again")
        return "killed"
    seconds = chance.uniform(0.2, 2.5 * LEASE_SECONDS)
    replica.send(signal.SIGSTOP)
    time.sleep(seconds)
    replica.send(signal.SIGCONT)
    return "stopped_past_the_lease" if seconds > LEASE_SECONDS else "stopped_shortly"


class Lifecycles:
    """From a dataset to a tuned model that serves, one after another until ``enough``."""

    def __init__(self, mesh: ReplicaMesh, enough: threading.Event) -> None:
        self._mesh = mesh
        self._enough = enough
        self.count = 0
        self.violations: list[str] = []

    def go_on(self, number: int) -> None:
        made = 0
        while not made or not self._enough.is_set():
            try:
                self._one(f"model-{number}-{made}")
            except Exception as error:  # whatever it is, it is what the harness looks for
                self.violations.append(f"model-{number}-{made}: {type(error).__name__}: {error}")
                return
            made += 1
            self.count += 1

    def _one(self, model: str) -> None:
        mesh = self._mesh
        dataset = mesh.create_dataset(f"{model}-dataset")
        mesh.create_run(f"{model}-run", model, dataset)
        self._serves(model)
        file = mesh.upload(f"{model}-file")
        job = mesh.create_job(f"{model}-job", model, file).rpartition("/")[2]
        ended = (
            "SELECT tuned_model FROM tuner.jobs WHERE id = :id AND state IN ('SUCCEEDED', 'FAILED')"
        )
        wait_until(lambda: bool(mesh.rows(ended, id=job)), _STEP_SECONDS, f"{job} ends")
        self._serves(mesh.rows(ended, id=job)[0].tuned_model)

    def _serves(self, model: str) -> None:
        serves = lambda: bool(self._mesh.rows(_SERVES, model=model))  # noqa: E731
        wait_until(serves, _STEP_SECONDS, f"the last checkpoint of {model} serves")


def _wrong_at_the_end(mesh: ReplicaMesh) -> list[str]:
    try:
        wait_until(lambda: not _differences(mesh), _QUIET_SECONDS, "the undisturbed end")
    except TimeoutError:
        return _differences(mesh)
    return []


def _differences(mesh: ReplicaMesh) -> list[str]:
    wrong = [f"{what}: {tuple(row)}" for what, query in _EMPTY.items() for row in mesh.rows(query)]
    steps = Counter(
        (row.run_id, row.step) for row in mesh.rows("SELECT run_id, step FROM trainer.checkpoints")
    )
    runs = [row.id for row in mesh.rows("SELECT id FROM trainer.runs")]
    wanted = Counter((id, step) for id in runs for step in STEPS)
    if steps != wanted:
        wrong.append(f"checkpoints are {steps - wanted} too many, {wanted - steps} too few")
    return [*wrong, *_said_twice(mesh), *_not_as_desired(mesh)]


def _said_twice(mesh: ReplicaMesh) -> list[str]:
    said: Counter[str] = Counter()
    for stage in STAGES:
        for row in mesh.rows(f"SELECT document FROM {stage}.outbox"):
            fact = json.loads(row.document)
            said[f"{fact['type']} {_about(fact['data'])}"] += 1
    return [f"said {count} times: {fact}" for fact, count in said.items() if count > 1]


def _about(said: dict[str, Any]) -> str:
    share = said.get("trafficShare", said.get("traffic_share", ""))
    if "rollout" in said:
        return f"{said['rollout']} {share}"
    return next((str(said[key]) for key in _ABOUT if key in said), json.dumps(said))


def _not_as_desired(mesh: ReplicaMesh) -> list[str]:
    """What Triton runs, against what serves."""
    rows = mesh.rows("SELECT tenant, model, number FROM registry.versions WHERE state = 'SERVING'")
    wanted = {(row.model, row.number) for row in rows}
    ready = mesh.triton.ready()
    if len(ready) != len(wanted) or {n for _, n in ready} != {n for _, n in wanted}:
        return [f"Triton runs {sorted(ready)}; serving are {sorted(wanted)}"]
    return []


def late_calls(mesh: ReplicaMesh) -> int:
    """Changes that a registry asked of Triton while another one held the lease."""
    claims: list[tuple[datetime, str]] = [
        (note.time, note.writer)
        for note in fencing_audit.read(mesh.administration)
        if note.old is not None and note.new is not None and note.new["epoch"] > note.old["epoch"]
    ]
    late = 0
    for call in mesh.triton.calls:
        holder = _holder(claims, call.time)
        late += holder not in ("", call.caller)
    return late


def _holder(claims: Sequence[tuple[datetime, str]], seconds: float) -> str:
    past = [writer for time, writer in claims if time.timestamp() <= seconds]
    return past[-1] if past else ""


if __name__ == "__main__":
    import tempfile

    folder = tempfile.mkdtemp(prefix="replicas-")
    print(folder)
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:.1f} {line}", flush=True)

    found = run(int(sys.argv[1]), int(os.environ.get("SEED", "1")), Path(folder), tell)
    print(f"{time.monotonic() - began:.1f} s")
    print(json.dumps({"runs": found.runs, "figures": dict(found.figures)}, indent=1))
    print("\n".join(found.violations) or "as undisturbed")
