"""A checkpoint with its weights rounded to bfloat16, in safetensors: half of float32's bytes."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from millrace_compressor.jobs import plain
from millrace_compressor.jobs.format import Conversion
from millrace_runtime.jobs import JobError

_INDEX = "model.safetensors.index.json"
_NAME = "bfloat16"


class Rounded(plain.Plain):
    """The format ``safetensors-bf16``, run by transformers."""

    def convert(self, conversion: Conversion, output: Path) -> None:
        plain.convert(conversion.model, output)
        size_bytes = sum(_round(path) for path in sorted(output.glob(plain.WEIGHTS)))
        _say_so(output, size_bytes)

    def inspect(self, output: Path) -> Mapping[str, float]:
        shares = plain.inspect(output)
        floating = {name for name in shares if getattr(torch, name).is_floating_point}
        if floating != {_NAME}:
            raise JobError(
                "QUANTIZATION_SKIPPED",
                f"weights are in {', '.join(sorted(floating))}, not in {_NAME} alone",
            )
        return shares

    def exact(self, output: Path, threads: int) -> plain.Artifact:
        """Rounded weights, but sums in float32."""
        return Exact(output)


class Exact(plain.Artifact):
    """``dtype`` names what the weights were rounded to, not what is computed in."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._model.float()

    @property
    def dtype(self) -> str:
        return _NAME


def _round(path: Path) -> int:
    """Round a file's floating tensors, to nearest and ties to even; the bytes of all its tensors.

    Raises:
        JobError: CHECKPOINT_INVALID, naming the file.
    """
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            metadata = file.metadata()
        tensors = {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in load_file(path).items()
        }
    except (SafetensorError, OSError) as error:
        raise JobError("CHECKPOINT_INVALID", f"{path.name}: {error}") from error
    temporary = path.with_suffix(".rounded")  # the file is mapped while it is read
    save_file(tensors, temporary, metadata)
    temporary.replace(path)
    return sum(tensor.nbytes for tensor in tensors.values())


def _say_so(output: Path, size_bytes: int) -> None:
    """In config.json, by which engines choose what to compute in, and in the index of shards."""
    config = json.loads((output / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = _NAME
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (output / _INDEX).exists():
        index = json.loads((output / _INDEX).read_text())
        index.setdefault("metadata", {})["total_size"] = size_bytes
        (output / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
