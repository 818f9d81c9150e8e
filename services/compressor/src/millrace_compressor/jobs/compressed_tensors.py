"""compressed-tensors, vLLM's format of quantised and pruned weights, made by llm-compressor.

llm-compressor runs in an environment of its own (deploy/local/llm_compressor.sh), in a process
that ends with this one. What it made is measured here: vLLM needs a GPU, so the runtime of the
measurements is transformers, on the weights and activations that the artifact stands for.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from millrace_compressor.jobs import compressed_weights as weights
from millrace_compressor.jobs import plain
from millrace_compressor.jobs.format import Conversion
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

_SCRIPT = Path(__file__).with_name("llm_compressor.py")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Byte for byte as the checkpoint's: nothing of them changes with the weights.
_KEPT = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "README.md",
)
_UNCALIBRATED = frozenset({"compressed-tensors-fp8"})
_READABLE = 0o644
_PATTERN, _ZEROS = 4, 2
_SPARSE = "compressed-tensors-sparse-2-4"
# By target: what a layer's weights are kept in, how config.json and shares name it.
_KEPT_IN = {
    "compressed-tensors-w8a8": (weights.INT8, "int-quantized", "int8"),
    "compressed-tensors-fp8": (weights.FLOAT8, "float-quantized", "float8_e4m3"),
    "compressed-tensors-w4a16": (weights.PACKED, "pack-quantized", "int4"),
}
# As ``parity.LIMITS`` names them: E4M3 has fewer digits than int8.
_DTYPES = {
    "compressed-tensors-w8a8": "int8",
    "compressed-tensors-fp8": "int8",
    "compressed-tensors-w4a16": "int4",
    _SPARSE: "pruned",
}


class CompressedTensors:
    """``target``: one of ``compressed-tensors-…``."""

    def __init__(self, target: str) -> None:
        self._target = target

    def convert(self, conversion: Conversion, output: Path) -> None:
        """
        Raises:
            JobError: LLM_COMPRESSOR_MISSING; RECIPE_INVALID, when the model's layers do not fit
                it; CHECKPOINT_INVALID; CALIBRATION_DATA_MISSING.
        """
        python = _interpreter(conversion.llm_compressor_python)
        with tempfile.TemporaryDirectory(
            prefix=manifest.TEMPORARY_PREFIX, dir=output.parent
        ) as folder:
            _compress(python, _order(conversion, self._target, output, Path(folder)), Path(folder))
        (output / "recipe.yaml").unlink()  # has tags of Python's; the manifest has the recipe
        for path in output.iterdir():
            path.chmod(_READABLE)  # safetensors makes its files their owner's alone
        for name in _KEPT:
            if (conversion.model / name).exists():
                shutil.copyfile(conversion.model / name, output / name)

    def inspect(self, output: Path) -> Mapping[str, float]:
        if self._target == _SPARSE:
            return _sparse_shares(output)
        return _quantised_shares(output, self._target)

    def size_bytes(self, output: Path) -> int:
        return plain.size_bytes(output)

    def open(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output, _DTYPES[self._target])

    def exact(self, output: Path, threads: int) -> "Artifact":
        return Artifact(output, _DTYPES[self._target])


class Artifact(plain.Artifact):
    """The artifact as the model that it stands for; ``dtype`` names its limits of parity."""

    def __init__(self, directory: Path, dtype: str) -> None:
        super().__init__(directory, weights.load)
        self._rounded_to = dtype

    @property
    def dtype(self) -> str:
        return self._rounded_to

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        """As measured by transformers on decompressed weights: vLLM's is another."""
        return {**super().latency(prompt), "runtime": "transformers"}


def _interpreter(told: Path | None) -> Path:
    python = told or Path(sys.prefix).parent / ".venv-llm-compressor" / "bin" / "python"
    if not python.exists():
        raise JobError(
            "LLM_COMPRESSOR_MISSING",
            f"there is no {python}: run deploy/local/llm_compressor.sh, or name the interpreter"
            " of an environment that has llm-compressor in"
            " MILLRACE_COMPRESSOR_LLM_COMPRESSOR_PYTHON",
        )
    return python


def _order(conversion: Conversion, target: str, output: Path, folder: Path) -> dict[str, Any]:
    """What ``llm_compressor.py`` is told."""
    recipe, windows = conversion.recipe, None
    if recipe.weight_method == "WEIGHT_METHOD_SCALE_ESTIMATION":
        raise JobError(
            "RECIPE_INVALID", f"{target} has no scale estimation: GPTQ, AWQ, or round to nearest"
        )
    rounds_only = recipe.weight_method == "WEIGHT_METHOD_ROUND_TO_NEAREST"
    if target not in _UNCALIBRATED and not rounds_only:
        windows = str(folder / "windows.npy")
        np.save(windows, conversion.calibration())
    return {
        "parent": os.getpid(),
        "model": str(conversion.model),
        "output": str(output),
        "target": target,
        "threads": conversion.threads,
        "windows": windows,
        "group_size": recipe.group_size,
        "weight_method": recipe.weight_method,
    }


def _compress(python: Path, order: Mapping[str, Any], folder: Path) -> None:
    """Isolated (-I), so that the files beside the script hide no library's; its log is ours."""
    path = folder / "order.json"
    path.write_text(json.dumps(order))
    threads = {"OMP_NUM_THREADS": str(order["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(
        [python, "-I", _SCRIPT, path],
        env={**os.environ, **_OFFLINE, **threads},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    told = ended.stdout.splitlines()
    if ended.returncode == 1 and told:
        said = json.loads(told[-1])
        raise JobError(said["reason"], said["message"])
    if ended.returncode != 0:
        raise RuntimeError(f"llm-compressor ended with status {ended.returncode}; see the log")


def _quantised_shares(output: Path, target: str) -> dict[str, float]:
    """Of the weights' elements, scales apart, after every layer was found to be kept as it must."""
    dtype, form, precision = _KEPT_IN[target]
    said = weights.quantization(output).get("format", "none")
    if said != form:
        raise JobError("QUANTIZATION_SKIPPED", f"config.json has the format {said}, not {form}")
    layers, counts = set(weights.linear_layers(output)), Counter[str]()
    for name, get in weights.tensors(output):
        layer, _, kind = name.rpartition(".")
        if kind in ("weight_scale", "weight_shape"):
            continue
        tensor = get()
        if layer in layers and kind in ("weight", "weight_packed") and tensor.dtype == dtype:
            layers.remove(layer)
            counts[precision] += tensor.numel() * (8 if kind == "weight_packed" else 1)
        else:
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    if layers or not counts[precision]:
        raise JobError("QUANTIZATION_SKIPPED", f"{_named(layers)} not kept in {precision}")
    return {name: count / counts.total() for name, count in counts.items()}


def _sparse_shares(output: Path) -> dict[str, float]:
    """As above; elements of layers in which two of each four are zero are named ``… 2:4``."""
    layers, counts = set(weights.linear_layers(output)), Counter[str]()
    for name, get in weights.tensors(output):
        tensor, layer = get(), name.removesuffix(".weight")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if layer in layers and _is_sparse(tensor):
            layers.remove(layer)
            dtype = f"{dtype} 2:4"
        counts[dtype] += tensor.numel()
    if layers or not counts:
        raise JobError("QUANTIZATION_SKIPPED", f"{_named(layers)} not sparse in 2:4")
    return {name: count / counts.total() for name, count in counts.items()}


def _is_sparse(matrix: torch.Tensor) -> bool:
    if matrix.shape[-1] % _PATTERN:
        return False
    zeros = (matrix.reshape(-1, _PATTERN) == 0).sum(-1)
    return bool((zeros >= _ZEROS).all())


def _named(layers: set[str]) -> str:
    if not layers:
        return "the model has no linear layers:"
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"{min(layers)}{more}:"
