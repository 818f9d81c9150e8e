"""What a training job leaves on disk, all of it committed through ``millrace_runtime.manifest``.

::

    <output>/
      step-00000100/         one a checkpoint, kept; kind "checkpoint"
        model/               weights in bf16 safetensors, configuration, the dataset's tokenizer
      resume/00000100/       the newest only; kind "training-state": what DeepSpeed saves

The state to resume from is committed before the checkpoint of the same step: a job killed
between the two makes the checkpoint from the state. The state is our own file on our own disk,
verified by digest before it is loaded; what leaves the job is safetensors alone.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

_STATES = "resume"
_TAG = "state"


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint."""

    path: Path
    digest: str
    size_bytes: int
    metadata: dict[str, Any]

    def report_fields(self) -> dict[str, Any]:
        """The fields of the job's ``checkpoint`` line."""
        named = ("step", "tokens_seen", "train_loss", "heldout_loss", "final", "parameters")
        return {
            "path": str(self.path),
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            **{name: self.metadata[name] for name in named},
        }


def path_of(output: Path, step: int) -> Path:
    return output / f"step-{step:08d}"


def sweep(output: Path) -> None:
    """Remove what a killed predecessor left unfinished."""
    for abandoned in output.rglob(f"{manifest.TEMPORARY_PREFIX}*"):
        manifest.remove_tree(abandoned)


def committed(output: Path) -> list[Committed]:
    """The checkpoints that are there, oldest first, every byte verified.

    Raises:
        JobError: CHECKPOINT_DAMAGED, naming the file.
    """
    return [_read(path) for path in sorted(output.glob("step-*"))]


def newest_state(output: Path) -> Path | None:
    """The state to resume from, verified; a damaged one is passed over for an older."""
    for path in sorted((output / _STATES).glob("[0-9]*"), reverse=True):
        try:
            _, digest = manifest.read(path)
            manifest.verify(path, digest)
        except manifest.ManifestError:
            continue
        return path
    return None


def save_state(engine: Any, output: Path, step: int, state: dict[str, Any]) -> None:
    """Commit all that resuming needs: weights, optimizer, every rank's random numbers.

    Every rank writes its part; rank 0 makes the directory and commits it.
    """
    target = output / _STATES / f"{step:08d}"
    temporary = _shared_temporary(target)
    torch.save(torch.get_rng_state(), temporary / f"random-{dist.get_rank()}.pt")
    engine.save_checkpoint(temporary, tag=_TAG, client_state=state)
    dist.barrier()
    if dist.get_rank() == 0:
        manifest.commit(temporary, target, "training-state", {"step": step})
        for older in sorted((output / _STATES).glob("[0-9]*")):
            if older.name < target.name:
                manifest.remove_tree(older)
    dist.barrier()


def load_state(engine: Any, path: Path) -> dict[str, Any]:
    """Put ``engine`` and this rank's random numbers where ``save_state`` left them."""
    _, state = engine.load_checkpoint(path, tag=_TAG)
    torch.set_rng_state(torch.load(path / f"random-{dist.get_rank()}.pt", weights_only=True))
    return dict(state)


def save(engine: Any, output: Path, tokenizer: Path, metadata: dict[str, Any]) -> Committed | None:
    """Commit the model as others read it, on rank 0; the other ranks get None."""
    if dist.get_rank() != 0:
        return None
    target = path_of(output, metadata["step"])
    temporary = manifest.temporary_sibling(target)
    model = temporary / "model"
    unwrapped = getattr(engine.module, "_orig_mod", engine.module)
    unwrapped.config.use_cache = True
    unwrapped.save_pretrained(model, safe_serialization=True)
    for file in sorted(tokenizer.iterdir()):
        shutil.copyfile(file, model / file.name)
    manifest.commit(temporary, target, "checkpoint", metadata)
    return _read(target)


def _read(path: Path) -> Committed:
    try:
        found, digest = manifest.read(path)
        manifest.verify(path, digest)
    except manifest.ManifestError as error:
        raise JobError("CHECKPOINT_DAMAGED", f"{error}; remove {path.name} to redo it") from error
    return Committed(path, digest, found.size_bytes, found.metadata)


def _shared_temporary(target: Path) -> Path:
    """A temporary directory that rank 0 makes and all ranks know."""
    name: list[Path | None] = [None]
    if dist.get_rank() == 0:
        name[0] = manifest.temporary_sibling(target)
    dist.broadcast_object_list(name, src=0)
    assert name[0] is not None
    return name[0]
