"""``python -m millrace_compressor.jobs.prune SPEC.json``: a checkpoint becomes a smaller student.

The first half of a pruning that is recovered: what is left of the model, and beside it the
windows of tokens that it is to learn from, as one committed directory. A tuning job takes it from
there, and ``jobs/compress.py`` what that has made.

Reasons of failure: those of ``pruning.Pruned.convert``, EVALUATION_DATA_INVALID.
"""

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from millrace_compressor.jobs import calibration
from millrace_compressor.jobs.format import Conversion, Recipe, Tokens
from millrace_compressor.jobs.pruning import Pruned
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.manifest import ManifestError

PHASES = ("prune", "recover")
# As the tuner knows it (``millrace_tuner.domain.WINDOWS_FILE``).
WINDOWS_FILE = "windows.npy"
_FEWEST_WINDOWS = 2  # one to learn from, one to measure by


class Spec(BaseModel):
    """``student_path`` is the directory that will hold the student."""

    model_config = ConfigDict(extra="forbid")

    compression_id: str
    checkpoint_path: Path
    checkpoint_digest: str
    evaluation_path: Path
    evaluation_digest: str
    recipe: Recipe
    student_path: Path
    working_directory: Path
    threads: int = Field(2, ge=1)
    window_tokens: int = Field(512, ge=2)
    recovery_tokens: int = Field(1_000_000, ge=2)


def work(spec: Spec, reporter: Reporter) -> None:
    """Make the student and report ``result`` with its digest and the number of its windows."""
    torch.set_num_threads(spec.threads)
    _verify(spec.checkpoint_path, spec.checkpoint_digest, "CHECKPOINT_INVALID")
    _verify(spec.evaluation_path, spec.evaluation_digest, "EVALUATION_DATA_INVALID")
    reporter.progress(PHASES[0], 0, len(PHASES))
    if not _is_whole(spec.student_path):
        manifest.remove_tree(spec.student_path)
        _make(spec)
    made, digest = manifest.read(spec.student_path)
    reporter.report(
        "result",
        student_path=str(spec.student_path),
        student_digest=digest,
        size_bytes=made.size_bytes,
        windows=made.metadata["windows"],
    )


def _make(spec: Spec) -> None:
    spec.student_path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in spec.student_path.parent.glob(f"{manifest.TEMPORARY_PREFIX}*"):
        manifest.remove_tree(abandoned)
    temporary = manifest.temporary_sibling(spec.student_path)
    model = spec.checkpoint_path / "model"
    config = json.loads((model / "config.json").read_text())
    length = min(spec.window_tokens, int(config["max_position_embeddings"]))

    def windows(count: int) -> Tokens:
        wanted = spec.recipe.calibration.model_copy(update={"samples": count})
        return calibration.sample(spec.evaluation_path, model, wanted, length).windows

    conversion = Conversion(
        model,
        "safetensors-pruned",
        spec.recipe,
        lambda: windows(spec.recipe.calibration.samples),
        spec.threads,
    )
    Pruned().convert(conversion, temporary / "model")
    learned = windows(max(spec.recovery_tokens // length, _FEWEST_WINDOWS))
    np.save(temporary / WINDOWS_FILE, learned.astype(np.int32))
    manifest.commit(temporary, spec.student_path, "student", {"windows": len(learned)})


def _is_whole(path: Path) -> bool:
    try:
        manifest.verify(path, manifest.read(path)[1])
    except ManifestError:
        return False
    return True


def _verify(path: Path, digest: str, reason: str) -> None:
    try:
        manifest.verify(path, digest)
    except ManifestError as error:
        raise JobError(reason, str(error)) from error


if __name__ == "__main__":
    jobs.run("compressor.prune", Spec, work, lambda spec: spec.working_directory)
