"""``PYTHON -I llm_compressor.py ORDER.json``: one checkpoint through llm-compressor.

llm-compressor needs a newer transformers than the mesh has, so this file runs in an environment
of its own (deploy/local/llm_compressor.sh) and imports nothing of the mesh. The order is

    {"parent": process id, "model": folder, "output": folder, "target": name, "threads": count,
     "windows": .npy of token ids (windows, positions) or null, "group_size": count or null,
     "weight_method": name or null}

How far it is, it says in lines on standard error. Where it fails by something that a user can put
right, the last line on standard output is ``{"reason": "UPPER_SNAKE", "message": text}``.

Methods: SmoothQuant (arXiv:2211.10438), GPTQ (arXiv:2210.17323), AWQ (arXiv:2306.00978),
SparseGPT (arXiv:2301.00774).
"""

import ctypes
import json
import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Powers of two: what vLLM has kernels for (its Marlin takes 128, 64 and 32).
_GROUP_SIZES = (128, 64, 32, 16, 8)
_SPARSE_GROUP = 4
_SMOOTHING_STRENGTH = 0.5  # as in SmoothQuant's paper


class OrderError(Exception):
    """What a user can put right."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def main() -> int:
    """The exit status: 0, or 1 after saying what was wrong."""
    order = json.loads(Path(sys.argv[1]).read_bytes())
    _die_with(order["parent"])
    try:
        with redirect_stdout(sys.stderr):
            compress(order)
    except OrderError as error:
        print(json.dumps({"reason": error.reason, "message": str(error)}))
        return 1
    return 0


def compress(order: Mapping[str, Any]) -> None:
    """Write the compressed model to ``output``: its weights, its configuration, and the recipe.

    Raises:
        OrderError: CHECKPOINT_INVALID, RECIPE_INVALID.
    """
    _say("loading llm-compressor")
    import torch
    from llmcompressor import oneshot

    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    model = _load(Path(order["model"]))
    modifiers = _modifiers(order, model)
    _say(", ".join(type(modifier).__name__ for modifier in modifiers))
    oneshot(
        model=model,
        processor=_tokenizer(order["model"]),
        recipe=modifiers,
        dataset=None if order["windows"] is None else _loader(order["windows"]),
    )
    _say("saving")
    model.save_pretrained(order["output"], save_compressed=True)


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"the model cannot be loaded: {error}"
        raise OrderError("CHECKPOINT_INVALID", message) from error


def _tokenizer(folder: str) -> Any:
    """llm-compressor wants one wherever it calibrates, and does not use it: the windows are ids."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _loader(path: str) -> Any:
    """Batches of one window, in the order of the file."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader

    ids = torch.from_numpy(np.load(path, allow_pickle=False))
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    return DataLoader(rows, batch_size=1, shuffle=False)


def _modifiers(order: Mapping[str, Any], model: Any) -> list[Any]:
    """llm-compressor's recipe for the target. The head stays as it is, as vLLM wants it."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    linears = _linears(model)
    given: dict[str, Any] = {"targets": ["Linear"], "ignore": _heads(model)}
    match order["target"]:
        case "compressed-tensors-fp8":
            return [QuantizationModifier(scheme="FP8_DYNAMIC", **given)]
        case "compressed-tensors-w8a8":
            smooth = SmoothQuantModifier(smoothing_strength=_SMOOTHING_STRENGTH)
            return [smooth, GPTQModifier(scheme="W8A8", **given)]
        case "compressed-tensors-w4a16":
            return _four_bits(order, linears, given["ignore"])
        case "compressed-tensors-sparse-2-4":
            require_divides(_SPARSE_GROUP, linears)
            return [SparseGPTModifier(sparsity=0.5, mask_structure="2:4", **given)]
    raise ValueError(order["target"])


def _four_bits(order: Mapping[str, Any], linears: Mapping[str, int], heads: list[str]) -> list[Any]:
    """Symmetric, in groups; rounded as the recipe's method says (GPTQ, if it says nothing)."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size(order["group_size"], linears),
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    given: dict[str, Any] = {"config_groups": groups, "ignore": heads}
    match order["weight_method"]:
        case None | "WEIGHT_METHOD_GPTQ":
            return [GPTQModifier(**given)]
        case "WEIGHT_METHOD_AWQ":
            _pin_nothing_without_accelerator()
            return [AWQModifier(), QuantizationModifier(**given)]
        case "WEIGHT_METHOD_ROUND_TO_NEAREST":
            return [QuantizationModifier(**given)]
    raise ValueError(order["weight_method"])


def _pin_nothing_without_accelerator() -> None:
    """AWQ of llm-compressor 0.14 pins what it keeps, which torch refuses where there is no GPU."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None


def group_size(wanted: int | None, linears: Mapping[str, int]) -> int:
    """What is wanted, else the largest that divides the inputs of every linear layer.

    Raises:
        OrderError: RECIPE_INVALID, naming a layer that it does not divide.
    """
    common = math.gcd(*linears.values())
    found = next((size for size in _GROUP_SIZES if common % size == 0), _GROUP_SIZES[-1])
    size = wanted or found
    require_divides(size, linears)
    return size


def require_divides(size: int, linears: Mapping[str, int]) -> None:
    """
    Raises:
        OrderError: RECIPE_INVALID, naming the layer.
    """
    for name, columns in linears.items():
        if columns % size:
            raise OrderError(
                "RECIPE_INVALID", f"groups of {size} do not divide the {columns} inputs of {name}"
            )


def _linears(model: Any) -> dict[str, int]:
    """How many inputs each linear layer has, the head apart."""
    from torch.nn import Linear

    heads = _heads(model)
    return {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name not in heads
    }


def _heads(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that started it ends (Linux prctl)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before prctl took effect


def _say(text: str) -> None:
    print(f"llm-compressor: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
