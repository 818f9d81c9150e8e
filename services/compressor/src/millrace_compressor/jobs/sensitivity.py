"""How much a model suffers from each of its layers in 4 bits: what a search of bits begins with.

One layer at a time is rounded as ``openvino-int4`` rounds without calibration, and what the model
then says is held against what it said before. It costs one forward pass a layer and a batch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from millrace_compressor.jobs.format import Tokens
from millrace_compressor.jobs.openvino_bits import GROUP_SIZE, LEAST_GROUP_SIZE

_LEVELS = 15
_WINDOWS_AT_ONCE = 4


def layer_inputs(model: Path) -> dict[str, int]:
    """How many inputs each layer has that may have fewer bits, by its module's name.

    They are those that ``Recipe.layer_bits`` takes: all linear ones but the output's.
    """
    return {name: layer.in_features for name, layer in _layers(_load(model)).items()}


def sensitivity(model: Path, windows: Tokens, group_size: int = GROUP_SIZE) -> dict[str, float]:
    """Mean KL divergence, in nats a token, from the model to one with only that layer in 4 bits.

    Args:
        windows: int64, (windows, positions), of calibration data.
        group_size: where it does not divide a layer's inputs, the largest power of two that does.
    """
    loaded = _load(model)
    layers = _layers(loaded)
    sums = dict.fromkeys(layers, 0.0)
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        ids = torch.from_numpy(windows[start : start + _WINDOWS_AT_ONCE])
        whole = _log_probabilities(loaded, ids)
        for name, layer in layers.items():
            with _rounded(layer, group_size):
                less = _log_probabilities(loaded, ids)
            sums[name] += float((whole.exp() * (whole - less)).sum(-1).double().sum())
    return {name: total / windows.size for name, total in sums.items()}


def round_to_4_bits(weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """The nearest of 16 values, between the extremes of a group and with zero among them.

    Args:
        weights: float32, (outputs, inputs).
    """
    size = fitting_group_size(weights.shape[1], group_size)
    groups = weights.reshape(len(weights), -1, size)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / _LEVELS).clamp(min=torch.finfo(torch.float32).eps)
    zero_point = (-low / scale).round()
    codes = (groups / scale + zero_point).round().clamp(0, _LEVELS)
    return ((codes - zero_point) * scale).reshape(weights.shape)


def fitting_group_size(inputs: int, group_size: int) -> int:
    """As NNCF chooses it; a whole row where no power of two from ``LEAST_GROUP_SIZE`` divides."""
    if inputs % group_size == 0:
        return group_size
    largest = inputs & -inputs
    return largest if largest >= LEAST_GROUP_SIZE else inputs


def _load(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)


def _layers(model: Any) -> Mapping[str, nn.Linear]:
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }


@contextmanager
def _rounded(layer: nn.Linear, group_size: int) -> Iterator[None]:
    whole = layer.weight.data
    layer.weight.data = round_to_4_bits(whole, group_size)
    try:
        yield
    finally:
        layer.weight.data = whole


@torch.inference_mode()
def _log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits.log_softmax(-1)
