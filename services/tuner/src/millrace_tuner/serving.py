"""What became of a job's final checkpoint, from what the compressor and the registry show.

Pure, and independent of the order in which anything happened. A checkpoint may be compressed
for several targets: one that serves is enough, and it has failed once no target is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from millrace_tuner.domain import Failure, Outcome

_SUPERSEDED = "ROLLOUT_SUPERSEDED"
_UNDECIDED_WORK = frozenset(("QUEUED", "RUNNING", "PAUSED", "UNSPECIFIED"))


@dataclass(frozen=True)
class SeenCompression:
    """A compression: ``state`` as a WorkState; ``passed`` and ``reasons`` are the gate's word."""

    name: str
    checkpoint: str
    state: str
    passed: bool
    reasons: tuple[str, ...]
    failure: Failure | None


@dataclass(frozen=True)
class SeenVersion:
    """A version: ``state`` as the registry's VersionState; ``reason`` why it was taken out."""

    number: int
    compression: str
    checkpoint: str
    state: str
    reason: str


@dataclass(frozen=True)
class SeenRollout:
    """A rollout: ``state`` as the registry's RolloutState."""

    to_version: int
    state: str
    reason: str


@dataclass(frozen=True)
class Scene:
    """All there is of one tuned model outside the tuner."""

    compressions: Sequence[SeenCompression] = ()
    versions: Sequence[SeenVersion] = ()
    rollouts: Sequence[SeenRollout] = ()


def outcome_of(checkpoint: str, scene: Scene) -> Outcome | None:
    """The fate of the checkpoint of that name; None while it is open."""
    versions = [version for version in scene.versions if version.checkpoint == checkpoint]
    numbers = {version.number for version in versions}
    settled = {r.to_version for r in scene.rollouts if r.state == "SETTLED"}
    if numbers & settled or any(_has_served(version, scene.rollouts) for version in versions):
        return Outcome()
    own = sorted(
        (c for c in scene.compressions if c.checkpoint == checkpoint), key=lambda c: c.name
    )
    failures = [_failure_of(compression, versions, scene.rollouts) for compression in own]
    known = [failure for failure in failures if failure is not None]
    if not failures or len(known) < len(failures):
        return None
    # What superseded a version was another target's, whose fate tells the user more.
    return Outcome(min(known, key=lambda failure: failure.reason == _SUPERSEDED))


def _has_served(version: SeenVersion, rollouts: Sequence[SeenRollout]) -> bool:
    """A RETIRED version served until a later one did, unless its rollout was reversed."""
    was_reversed = any(r.to_version == version.number and r.state == "REVERSED" for r in rollouts)
    return version.state == "SERVING" or (version.state == "RETIRED" and not was_reversed)


def _failure_of(
    compression: SeenCompression,
    versions: Sequence[SeenVersion],
    rollouts: Sequence[SeenRollout],
) -> Failure | None:
    """Why one target's road has ended; None while it is open."""
    if compression.state in _UNDECIDED_WORK:
        return None
    if compression.state == "FAILED":
        return _compression_failed(compression.failure)
    if compression.state == "CANCELLED":
        return Failure("COMPRESSION_CANCELLED", "the compression of the tuned model was cancelled")
    if not compression.passed:
        return compression_rejected(compression.reasons)
    made = [version for version in versions if version.compression == compression.name]
    return _version_failure(made[0], rollouts) if made else None


def _compression_failed(failure: Failure | None) -> Failure:
    told = f"{failure.reason}: {failure.message}" if failure else "no reason was given"
    return Failure("COMPRESSION_FAILED", f"the tuned model could not be compressed ({told})")


def compression_rejected(reasons: Sequence[str]) -> Failure:
    """The gate found the compressed model not good enough; ``reasons`` carry the figures."""
    measured = "; ".join(reasons) or "no reason was given"
    return Failure("COMPRESSION_REJECTED", f"the compressed model is not good enough: {measured}")


def _version_failure(version: SeenVersion, rollouts: Sequence[SeenRollout]) -> Failure | None:
    for rollout in rollouts:
        if rollout.to_version == version.number and rollout.state == "REVERSED":
            message = f"the tuned model's rollout was reversed: {rollout.reason}"
            return Failure("ROLLOUT_REVERSED", message)
        if rollout.to_version == version.number and rollout.state == "SUPERSEDED":
            message = f"the tuned model's rollout was superseded: {rollout.reason}"
            return Failure(_SUPERSEDED, message)
    if version.state == "QUARANTINED":
        message = f"the tuned model was taken out of service: {version.reason}"
        return Failure("VERSION_QUARANTINED", message)
    return None
