"""What a training job leaves on disk, all of it committed through ``millrace_runtime.manifest``.

::

    <output>/
      step-00000100/         one a checkpoint, kept; kind "checkpoint"
        model/               weights in bf16 safetensors, configuration, the dataset's tokenizer
      resume/00000100/       the newest only; kind "training-state": what DeepSpeed saves
      lock                   held by the job that writes here

The state to resume from is committed before the checkpoint of the same step: a job killed
between the two makes the checkpoint from the state. It is DeepSpeed's own format (each rank its
part of the master weights and moments), a pickle: our own file, read back only once its digest
is verified. What others read, the checkpoint, is safetensors and JSON alone.

Both name the specification that they follow from, so that a directory serves one run.
"""

import fcntl
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_runtime.manifest import ManifestError
from millrace_trainer.jobs import random_numbers, ranks

CHECKPOINT_KIND = "checkpoint"
STATE_KIND = "training-state"
_TAG = "state"


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint or state, every byte of it verified."""

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


class Checkpoints:
    """The directory of one run; ``specification`` is the digest of what the run is."""

    def __init__(self, directory: Path, specification: str) -> None:
        self._directory = directory
        self._states = directory / "resume"
        self._specification = specification

    def open(self) -> None:
        """On the first rank: wait until no other job writes here, then remove its remains.

        A job whose service has lost its lease may still be saving. The lock ends with the process.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self._directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for abandoned in self._directory.rglob(f"{manifest.TEMPORARY_PREFIX}*"):
            manifest.remove_tree(abandoned)

    def close(self) -> None:
        """Let another job write here."""
        self._lock.close()

    def committed(self) -> list[Committed]:
        """The checkpoints that are there, oldest first. A damaged one is passed over.

        Raises:
            JobError: OUTPUT_DIRECTORY_IN_USE: they are another run's.
        """
        return self._read(sorted(self._directory.glob("step-*")))

    def at(self, step: int) -> Committed | None:
        """The checkpoint of a step, if it is there and whole."""
        found = self._read([self._path_of(step)])
        return found[0] if found else None

    def newest_state(self) -> Committed | None:
        """The state to resume from; ``None``: begin at the beginning."""
        found = self._read(sorted(self._states.glob("[0-9]*")))
        return found[-1] if found else None

    def save_state(self, engine: Any, progress: dict[str, Any]) -> None:
        """Commit all that resuming needs; ``progress`` holds ``step`` and what else is wanted.

        Every rank writes its part: weights, optimizer, random numbers. The data needs no state.
        """
        target = self._states / f"{progress['step']:08d}"
        temporary = ranks.temporary_sibling(target)
        torch.save(random_numbers.state(), temporary / f"random-{ranks.number()}.pt")
        engine.save_checkpoint(temporary, tag=_TAG, client_state=progress)
        ranks.wait()
        if ranks.is_first():
            metadata = {"step": progress["step"], "specification": self._specification}
            manifest.remove_tree(target)  # damaged, or it would have been resumed from
            manifest.commit(temporary, target, STATE_KIND, metadata)
            for older in self._states.glob("[0-9]*"):
                if older.name < target.name:
                    manifest.remove_tree(older)
        ranks.wait()

    def save(self, engine: Any, tokenizer: Path, metadata: dict[str, Any]) -> Committed | None:
        """Commit the model as others read it, on the first rank; the others get None.

        One that is there already stands, for others may be reading it, unless it is damaged.
        """
        if not ranks.is_first():
            return None
        target = self._path_of(metadata["step"])
        if existing := self.at(metadata["step"]):
            return existing
        manifest.remove_tree(target)
        temporary = manifest.temporary_sibling(target)
        model = temporary / "model"
        engine.module.save_pretrained(model, safe_serialization=True)
        for file in sorted(tokenizer.iterdir()):
            shutil.copyfile(file, model / file.name)
        metadata = {**metadata, "specification": self._specification}
        manifest.commit(temporary, target, CHECKPOINT_KIND, metadata)
        return self._read([target])[0]

    def remove_states(self) -> None:
        """A run that is complete resumes no more."""
        manifest.remove_tree(self._states)

    def _path_of(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}"

    def _read(self, paths: list[Path]) -> list[Committed]:
        found = []
        for path in paths:
            try:
                _, digest = manifest.read(path)
                content = manifest.verify(path, digest)
            except ManifestError as error:
                if path.exists():
                    print(f"passed over: {error}", file=sys.stderr)
                continue
            if content.metadata.get("specification") != self._specification:
                message = f"{path} is of another run; give this one a directory of its own"
                raise JobError("OUTPUT_DIRECTORY_IN_USE", message)
            found.append(Committed(path, digest, content.size_bytes, content.metadata))
        return found


def load_state(engine: Any, state: Committed) -> dict[str, Any]:
    """Put ``engine`` and this rank's random numbers where ``save_state`` left them."""
    _, progress = engine.load_checkpoint(state.path, tag=_TAG)
    path = state.path / f"random-{ranks.number()}.pt"
    random_numbers.restore(torch.load(path, weights_only=True))
    return dict(progress)
