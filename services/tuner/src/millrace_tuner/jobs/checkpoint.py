"""What a tuning job leaves on disk, all of it committed through ``millrace_runtime.manifest``.

::

    <output>/
      checkpoint-00000020/        one an epoch, kept; kind "checkpoint"
        model/                    the merged model, as Hugging Face's ``save_pretrained`` writes it,
                                  with its card (absent where the adapter cannot be merged)
        adapter/                  the adapter alone, PEFT format (absent after full fine-tuning)
        evaluation/heldout-00000.npy
        calibration/train-00000.npy   rows of the training file, for the compressor
      training_state/00000031/    the newest only; kind "training-state"
      metrics.jsonl

A training state (weights in training, optimizer, schedule, random numbers, history) is
committed before the checkpoint of the same step, so that a job killed between the two makes
the checkpoint from the state. Both carry the digest of the specification that they follow from.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

CHECKPOINT_KIND = "checkpoint"
STATE_KIND = "training-state"
_CHECKPOINT_PREFIX = "checkpoint-"
_STATES_NAME = "training_state"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
_CONFIGURATION = "config.json"


@dataclass(frozen=True)
class Committed:
    """A committed directory: a checkpoint or a training state."""

    path: Path
    digest: str
    size_bytes: int
    metadata: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.metadata["step"])


def checkpoint_path(output_directory: Path, step: int) -> Path:
    return output_directory / f"{_CHECKPOINT_PREFIX}{step:08d}"


def state_path(output_directory: Path, step: int) -> Path:
    return output_directory / _STATES_NAME / f"{step:08d}"


def sweep(output_directory: Path) -> None:
    """Remove what a killed predecessor left unfinished."""
    for parent in (output_directory, output_directory / _STATES_NAME):
        for path in parent.glob(f"{manifest.TEMPORARY_PREFIX}*"):
            if path.is_dir():
                manifest.remove_tree(path)
            else:
                path.unlink()


def checkpoints(output_directory: Path, spec_digest: str) -> list[Committed]:
    """The committed checkpoints, oldest first, every byte verified.

    Raises:
        JobError: OUTPUT_DIRECTORY_IN_USE when they are another job's, CHECKPOINT_DAMAGED.
    """
    found = sorted(output_directory.glob(f"{_CHECKPOINT_PREFIX}*"))
    return [_read(path, spec_digest) for path in found]


def newest_state(output_directory: Path, spec_digest: str) -> Committed | None:
    """The training state to resume from, every byte verified; ``None`` when there is none."""
    found = sorted(path for path in (output_directory / _STATES_NAME).glob("[0-9]*"))
    return _read(found[-1], spec_digest) if found else None


def _read(path: Path, spec_digest: str) -> Committed:
    try:
        _, digest = manifest.read(path)
        content = manifest.verify(path, digest)
    except manifest.ManifestError as error:
        message = f"{error}; remove {path.name} to have it made again"
        raise JobError("CHECKPOINT_DAMAGED", message) from error
    if content.metadata.get("spec_digest") != spec_digest:
        message = f"{path} belongs to another specification; give this job its own directory"
        raise JobError("OUTPUT_DIRECTORY_IN_USE", message)
    return Committed(path, digest, content.size_bytes, content.metadata)


def commit_state(written: Path, output_directory: Path, step: int, spec_digest: str) -> None:
    """Commit what the trainer wrote to ``written``, then drop the states that it replaces."""
    target = state_path(output_directory, step)
    temporary = manifest.temporary_sibling(target)
    written.replace(temporary)
    manifest.commit(temporary, target, STATE_KIND, {"step": step, "spec_digest": spec_digest})
    for older in _states_before(output_directory, step):
        manifest.remove_tree(older)


def remove_states(output_directory: Path) -> None:
    """A finished job needs no state to resume from."""
    manifest.remove_tree(output_directory / _STATES_NAME)


def _states_before(output_directory: Path, step: int) -> Iterator[Path]:
    for path in (output_directory / _STATES_NAME).glob("[0-9]*"):
        if int(path.name) < step:
            yield path


def commit_checkpoint(
    temporary: Path, output_directory: Path, metadata: dict[str, Any]
) -> Committed:
    """Make a written checkpoint durable and visible.

    Raises:
        OSError: the filesystem refused; nothing is visible.
    """
    target = checkpoint_path(output_directory, int(metadata["step"]))
    digest = manifest.commit(temporary, target, CHECKPOINT_KIND, metadata)
    content, _ = manifest.read(target)
    return Committed(target, digest, content.size_bytes, content.metadata)


def copy_all_but_weights(base_model: Path, model: Path, *, keep_configuration: bool) -> None:
    """Copy configuration (unless it is to stay), tokenizer and chat template byte for byte over
    ``model``."""
    kept = (*_WEIGHTS, *([_CONFIGURATION] if keep_configuration else []))
    for path in sorted(base_model.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in kept):
            shutil.copyfile(path, model / path.name)


def copy_content(committed: Path, directory: Path) -> None:
    """Copy what a committed checkpoint holds, but for its manifest."""
    ignored = shutil.ignore_patterns(manifest.MANIFEST_NAME)
    shutil.copytree(committed, directory, ignore=ignored, dirs_exist_ok=True)


def report_fields(checkpoint: Committed) -> dict[str, Any]:
    """The fields of the job's ``checkpoint`` line."""
    metadata = checkpoint.metadata
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "size_bytes": checkpoint.size_bytes,
        "step": metadata["step"],
        "epoch": metadata["epoch"],
        "final": metadata["final"],
        "train_loss": metadata["train_loss"],
        "valid_loss": metadata["valid"].get("valid_loss"),
        "metrics": {**metadata["valid"], **parity_of(metadata)},
        "trained_tokens": metadata["trained_tokens"],
    }


def parity_of(metadata: dict[str, Any]) -> dict[str, float]:
    """The largest difference of a log-probability, by the form that was compared with training's:
    ``parity_adapter``, ``parity_merge``; nothing of models that write no text."""
    found = metadata.get("parity", {}).get("largest_difference", {})
    return {f"parity_{stage}": value for stage, value in found.items()}
