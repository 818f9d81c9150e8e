"""Stands in for the compression job: commits an artifact that was measured for real."""

from pathlib import Path

from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_runtime.manifest import TEMPORARY_PREFIX, remove_tree
from tests.chaos import replay


class Spec(replay.Spec):
    """What the stand-in reads of a compression's specification."""

    compression_id: str
    checkpoint_digest: str
    artifact_path: Path


def work(spec: Spec, reporter: Reporter) -> None:
    """Say and write what the real job did."""
    for abandoned in spec.artifact_path.parent.glob(f"{TEMPORARY_PREFIX}{spec.compression_id}*"):
        remove_tree(abandoned)
    for message in replay.lines(spec):
        if message["kind"] == "result":
            original = Path(message["artifact_path"])
            digest = replay.commit_copy(
                original,
                spec.artifact_path,
                spec.compression_id,
                checkpoint_digest=spec.checkpoint_digest,
            )
            message = {**message, "artifact_path": str(spec.artifact_path)}
            message["artifact_digest"] = digest
        reporter.report(message.pop("kind"), **message)


if __name__ == "__main__":
    jobs.run("compressor.replay", Spec, work)
