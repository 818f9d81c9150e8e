"""What a run measured, one JSON object a line in ``metrics.jsonl``.

A training step's line is ``{"step", "train_loss", "learning_rate"}`` and what else its method
tells, a validation's ``{"step", "valid_…"}``; both may name the same step. Of supervised
learning, losses are means over learned tokens, in nats; accuracies are the fraction of learned
tokens that were the most likely one. The training state is the truth and this file its view:
a job that resumes writes the file anew up to the step that it resumes from.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace_runtime import manifest

METRICS_NAME = "metrics.jsonl"
_NAME_IN_TRAINER = {"step": "step", "train_loss": "loss", "learning_rate": "learning_rate"}


def step_line(logged: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A step's line from what the trainer logged for it; ``names`` are the method's own."""
    every = {**_NAME_IN_TRAINER, **names}
    return {ours: logged[theirs] for ours, theirs in every.items() if theirs in logged}


class MetricsFile:
    """The metrics of one run; lines are appended as they are measured."""

    def __init__(self, output_directory: Path) -> None:
        self.path = output_directory / METRICS_NAME

    def rewrite(self, lines: Sequence[dict[str, Any]]) -> None:
        """Replace the content, ordered by step, so that a reader sees the old or the new."""
        ordered = sorted(lines, key=lambda line: int(line["step"]))
        content = "".join(json.dumps(line) + "\n" for line in ordered)
        temporary = self.path.with_name(f"{manifest.TEMPORARY_PREFIX}{METRICS_NAME}")
        manifest.write_durably(temporary, content.encode())
        temporary.replace(self.path)

    def append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
