"""A short lifecycle, and what it came to in a form in which two can be compared."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tests.chaos.chaos_mesh import ChaosMesh
from tests.e2e.lifecycle import ARCHITECTURE, Mesh

MODEL = "chaos"
STEPS = 4
_DATASET = {
    "source": {"type": "python_standard_library"},
    "recipe": {"vocabulary_size": 512, "maximum_bytes": 300_000, "heldout_fraction": 0.2},
}
_RUN = {
    "model": MODEL,
    "architecture": {**ARCHITECTURE, "context_length": 64},
    "hyperparameters": {
        "total_steps": STEPS,
        "checkpoint_every_steps": STEPS,
        "batch_sequences": 4,
        "micro_batch_sequences": 4,
        "warmup_steps": 1,
        "seed": 7,
    },
}
_END_SECONDS = 300.0
_QUIET_SECONDS = 60.0
_ID = re.compile(r"\b(dataset|run|ckpt|compression|rollout|deployment|fact)-[0-9a-z]{26}\b")
_MEASURED = (
    "seconds",
    "per_second",
    "time",
    "bytes",
    "tokens",
    "perplexity",
    "divergence",
    "agreement",
)


@dataclass(frozen=True)
class Lifecycle:
    """One lifecycle that has ended: from a dataset to a version that serves."""

    run: str
    version: int
    facts: Sequence[dict[str, Any]]
    weights_sha256: str


def execute(chaos: ChaosMesh, key: str, outboxes: Mapping[str, int]) -> Lifecycle:
    """Ask for a dataset and a run, patiently, and wait until the version made of it serves.

    ``key`` makes the asking idempotent: a client that saw its connection break asks again.

    Raises:
        AssertionError: it came to no end in time, or to a bad one.
    """
    mesh = chaos.mesh
    dataset = _ask(mesh, "/datasets", _DATASET, f"{key}-dataset")
    built = mesh.ended(f"/datasets/{dataset}", _END_SECONDS)
    assert built["status"] == "succeeded", built["error"]
    run = _ask(mesh, "/training/runs", {**_RUN, "dataset": dataset}, f"{key}-run")
    ended = mesh.ended(f"/training/runs/{run}", _END_SECONDS)
    assert ended["status"] == "succeeded", ended["error"]
    version = mesh.until(lambda: _serving(mesh, run), f"a version of {run} serves", _END_SECONDS)
    mesh.until(lambda: _is_quiet(chaos), "no job runs and nothing temporary lies", _QUIET_SECONDS)
    facts, _ = chaos.recorded(outboxes)
    return Lifecycle(run, version, facts, _weights(facts))


def difference(found: Lifecycle, wanted: Lifecycle) -> list[str]:
    """What is lost, what is there twice and what differs from ``wanted``, a sentence each."""
    has, should = _normalised(found), _normalised(wanted)
    lost = [f"lost: {fact}" for fact in (should - has).elements()]
    more = [
        f"{'duplicated' if fact in should else 'diverged'}: {fact}"
        for fact in (has - should).elements()
    ]
    weights = found.weights_sha256 != wanted.weights_sha256
    return [*lost, *more, *(["diverged: the weights are others"] if weights else [])]


def unpublished(chaos: ChaosMesh, facts: Sequence[dict[str, Any]]) -> list[str]:
    """Facts of ``facts`` that the stream does not hold once each."""
    ids = [fact["id"] for fact in facts]

    def told() -> Counter[str]:
        response = chaos.mesh.rest.get("/events", params={"follow": "false"})
        lines = response.text.splitlines()
        return Counter(line[4:] for line in lines if line.startswith("id: "))

    def complete() -> Counter[str] | None:
        found = told()
        return found if all(found[fact] for fact in ids) else None

    try:
        found = chaos.mesh.until(complete, "every fact is in the stream", _QUIET_SECONDS)
    except AssertionError:
        found = told()
    return [f"lost: {id} is not in the stream" for id in ids if not found[id]] + [
        f"duplicated: {id} is in the stream {found[id]} times" for id in ids if found[id] > 1
    ]


def _ask(mesh: Mesh, path: str, body: Mapping[str, Any], key: str) -> str:
    headers = {"idempotency-key": key}
    made = mesh.until(lambda: mesh.post(path, dict(body), **headers), f"{path} is taken", 60)
    return str(made["id"])


def _serving(mesh: Mesh, run: str) -> int | None:
    """Number of the version that was made of the run's checkpoint, once it serves."""
    versions = mesh.get(f"/versions?model={MODEL}&limit=100")["data"]
    rollouts = mesh.get(f"/rollouts?model={MODEL}&limit=100")["data"]
    mine = [v for v in versions if f"/{run}/" in f"/{v['checkpoint']}"]
    if not mine or any(r["status"] in ("pending", "loading", "canary") for r in rollouts):
        return None
    assert len(mine) == 1, f"{run} has {len(mine)} versions"
    return int(mine[0]["version"]) if mine[0]["status"] == "serving" else None


def _is_quiet(chaos: ChaosMesh) -> bool:
    return not chaos.jobs() and not chaos.leftovers()


def _weights(facts: Sequence[dict[str, Any]]) -> str:
    """sha256 of the weights' file of the last checkpoint, as its manifest says."""
    contents = [
        fact["data"]["content"]["uri"]
        for fact in facts
        if fact["type"].endswith("CheckpointFinished")
    ]
    if not contents:
        return ""
    manifest = json.loads((Path(urlparse(contents[-1]).path) / "manifest.json").read_text())
    return str(next(f["sha256"] for f in manifest["files"] if f["path"].endswith(".safetensors")))


def _normalised(lifecycle: Lifecycle) -> Counter[str]:
    """Its facts without what is new each time: ids, version numbers, digests, measurements."""
    return Counter(
        f"{fact['type']} {json.dumps(_stable(fact['data'], lifecycle.version), sort_keys=True)}"
        for fact in lifecycle.facts
    )


def _stable(value: Any, version: int) -> Any:
    if isinstance(value, dict):
        return {
            key: _relative(key, of, version)
            for key, of in value.items()
            if not key.endswith(_MEASURED) and key not in ("uri", "digest")
        }
    if isinstance(value, list):
        return [_stable(each, version) for each in value]
    if isinstance(value, str):
        text = _ID.sub(r"\1", value).replace(f"versions/{version}", "versions/new")
        return "sha256" if text.startswith("sha256:") else text
    return value


def _relative(key: str, value: Any, version: int) -> Any:
    """Version numbers count from the one that the lifecycle made."""
    if key in ("number", "to_version", "from_version"):
        return int(value) - version
    return _stable(value, version)
