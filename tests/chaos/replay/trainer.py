"""Stands in for the training job: commits the checkpoint of a run that was real.

It does so as often as the run's own settings ask for checkpoints.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_runtime.manifest import TEMPORARY_PREFIX, remove_tree
from tests.chaos import replay

# Between checkpoints, so that each has the time to be served before the next one comes.
_CHECKPOINT_SECONDS = 3.0


class Steps(BaseModel):
    """The hyperparameters that say which checkpoints there are."""

    model_config = ConfigDict(extra="allow")

    total_steps: int
    checkpoint_every_steps: int


class Spec(replay.Spec):
    """What the stand-in reads of a run's specification."""

    run_id: str
    output_directory: Path
    hyperparameters: Steps


def work(spec: Spec, reporter: Reporter) -> None:
    """Say and write what the real job did."""
    for abandoned in spec.output_directory.glob(f"{TEMPORARY_PREFIX}*"):
        remove_tree(abandoned)
    for message in replay.lines(spec):
        repeated = _checkpoints(spec, message) if message["kind"] == "checkpoint" else [message]
        for each in repeated:
            reporter.report(each.pop("kind"), **each)


def _checkpoints(spec: Spec, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    total, every = spec.hyperparameters.total_steps, spec.hyperparameters.checkpoint_every_steps
    for step in range(every, total + 1, every):
        target = spec.output_directory / f"step-{step:08}"
        digest = replay.commit_copy(Path(message["path"]), target, f"{spec.run_id} {step}")
        is_final = step + every > total
        yield {**message, "path": str(target), "digest": digest, "step": step, "final": is_final}
        if not is_final:
            time.sleep(_CHECKPOINT_SECONDS)


if __name__ == "__main__":
    jobs.run("trainer.replay", Spec, work)
