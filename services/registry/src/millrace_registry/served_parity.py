"""Whether a version, as Triton serves it, says what its artifact said when it was made.

The last stage of a version's parity (``millrace_runtime.parity``): asked before it gets traffic.
The artifact's own scores are in its ``parity.json``; one without was never asked to have any.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from millrace_registry.domain import Content, Version
from millrace_registry.triton import NotScored
from millrace_runtime import parity
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.manifest import ManifestError
from millrace_runtime.parity import ARTIFACT, LIMITS, ParityError, Probe, Scores, Stage

LOG = logging.getLogger(__name__)

STAGE = "serving"
_ASKED = ("turns", "heldout_1")  # a rendered conversation, and what the job was measured by
_PROBES = 2
# The engine of checkpoints gives no log-probabilities of a prompt: one request each.
_CHECKPOINTS = ("TARGET_SAFETENSORS", "TARGET_SAFETENSORS_BF16", "TARGET_SAFETENSORS_PRUNED")
ONE_BY_ONE = dict.fromkeys(_CHECKPOINTS, 6)
_DTYPES = dict.fromkeys(_CHECKPOINTS, "bfloat16")


Learn = Callable[[Version, Mapping[str, object]], None]


class Scorer(Protocol):
    """One Triton endpoint (``triton.Triton``)."""

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores: ...
    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None: ...


def mismatch_of(version: Version) -> str:
    """How what it answered differed from what its artifact said; empty: it did not."""
    for stage in version.measurements.get("parity", {}).get("stages", ()):
        if stage.get("stage") == STAGE and stage.get("mismatch"):
            return f"parity is broken at the stage {STAGE!r}: {stage['mismatch']}"
    return ""


def measure(
    triton: Scorer, model: str, version: Version, content: ContentStore, learn: Learn
) -> str:
    """Compare a version that has something to be compared with, and have ``learn`` keep it.

    Returns:
        Why it could not be compared now; empty otherwise, also when there is a mismatch.
    """
    if not version.measurements.get("parity"):
        return ""
    try:
        stage = check(triton, model, version, content)
    except (NotScored, ManifestError, ContentOutsideRoot, OSError) as error:
        return f"its parity cannot be measured: {error}"
    if stage.mismatch:
        LOG.error("%s is not what it was: %s", version.name, stage.mismatch)
    learn(version, with_stage(version.measurements, stage))
    return ""


def check(triton: Scorer, model: str, version: Version, content: ContentStore) -> Stage:
    """Compare; ``model`` is its name on Triton.

    Raises:
        NotScored: the engine gave no scores; it may do so later.
        ManifestError, ContentOutsideRoot, OSError: the artifact is not what it was.
    """
    artifact: Content = version.artifact
    try:
        report = parity.read(content.directory(artifact.uri, artifact.digest))
    except ParityError as error:
        return Stage(STAGE, mismatch=str(error))
    probes = _chosen([probe for probe in report.probes if probe.scores.get(ARTIFACT)])
    count = ONE_BY_ONE.get(version.target)
    expected = [probe.scores[ARTIFACT][-(count or 0) :] for probe in probes]
    found = [
        _one_by_one(triton, model, version.number, probe, count)
        if count
        else triton.score(model, version.number, probe.token_ids)
        for probe in probes
    ]
    limits = LIMITS[_DTYPES.get(version.target, "float16")]
    return parity.compare(STAGE, expected, found, limits)


def with_stage(measurements: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """A version's measurements, with what serving adds to its parity."""
    known = measurements["parity"]
    told = {name: value for name, value in asdict(stage).items() if value is not None}
    stages = [one for one in known.get("stages", ()) if one.get("stage") != STAGE]
    return {**measurements, "parity": {**known, "stages": [*stages, told]}}


def _chosen(probes: Sequence[Probe]) -> Sequence[Probe]:
    by_name = {probe.name: probe for probe in probes}
    return [by_name[name] for name in _ASKED if name in by_name] or probes[:_PROBES]


def _one_by_one(triton: Scorer, model: str, number: int, probe: Probe, count: int) -> Scores:
    ids = probe.token_ids
    first = max(2, len(ids) - count + 1)
    return [triton.score_last(model, number, ids[:end]) for end in range(first, len(ids) + 1)]
