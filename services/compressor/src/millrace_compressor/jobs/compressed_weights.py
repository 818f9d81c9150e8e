"""The weights of a compressed-tensors artifact: what its bytes are, and the model they stand for.

A quantised layer is kept as ``weight`` (8 bits) or ``weight_packed`` (int32, eight numbers of four
bits each, lowest first, 8 added to each) beside ``weight_scale`` and ``weight_shape``. Weights
times scales are the layer; activations are rounded as they come, by token. The figures are those
of compressed-tensors 0.19, which the tests hold this file against.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from millrace_compressor.jobs.plain import WEIGHTS
from millrace_runtime.jobs import JobError

INT8, FLOAT8, PACKED = torch.int8, torch.float8_e4m3fn, torch.int32
_BITS_OF_NIBBLE = 4
_NIBBLES_OF_WORD = 8
_NIBBLE_OFFSET = 8
# Half of the range, as compressed-tensors has it: 255 steps, and ±448 of E4M3.
_HALF_RANGE = {"int": 127.5, "float": 448.0}
_INT8_RANGE = (-128, 127)


def linear_layers(output: Path) -> list[str]:
    """Names of the linear layers of the artifact's architecture, the head apart."""
    model = _empty(_shape(output))
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]


def quantization(output: Path) -> Mapping[str, Any]:
    """What the artifact's ``config.json`` says of how it is quantised; empty: nothing."""
    document = json.loads((output / "config.json").read_bytes())
    found: Mapping[str, Any] = document.get("quantization_config", {})
    return found


def tensors(output: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Every tensor's name, and what reads it: one at a time is in memory.

    Raises:
        JobError: CHECKPOINT_INVALID, naming the file.
    """
    opened: Any = safe_open  # it has no types
    with ExitStack() as stack:
        for path in sorted(output.glob(WEIGHTS)):
            try:
                file = stack.enter_context(opened(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise JobError("CHECKPOINT_INVALID", f"{path.name}: {error}") from error
            for name in file.keys():  # noqa: SIM118 (a file is no mapping)
                yield name, partial(file.get_tensor, name)


def load(output: Path) -> Any:
    """The model that the artifact stands for, as it answers: its activations are rounded too."""
    read = {name: get() for name, get in tensors(output)}
    quantised = [name.removesuffix(".weight_scale") for name in read if name.endswith("_scale")]
    for layer in quantised:
        read[f"{layer}.weight"] = _dequantised(layer, read)
    shape = _shape(output)
    model = type(_empty(shape)).from_pretrained(None, config=shape, state_dict=read, dtype="auto")
    activations = _activations(output)
    if activations:
        for layer in quantised:
            model.get_submodule(layer).register_forward_pre_hook(_rounding(activations))
    return model


def _shape(output: Path) -> Any:
    """The configuration without what makes transformers look for another library."""
    config = AutoConfig.from_pretrained(output, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _empty(shape: Any) -> Any:
    """A model of that shape whose weights have no memory."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(shape)


def _dequantised(layer: str, read: dict[str, Tensor]) -> Tensor:
    """(outputs, inputs) in the scale's type; takes what it is made of out of ``read``."""
    scale = read.pop(f"{layer}.weight_scale")
    packed = read.pop(f"{layer}.weight_packed", None)
    if packed is None:
        return read.pop(f"{layer}.weight").to(scale.dtype) * scale
    outputs, inputs = read.pop(f"{layer}.weight_shape").tolist()
    shifts = torch.arange(_NIBBLES_OF_WORD, dtype=torch.int32) * _BITS_OF_NIBBLE
    nibbles = (packed[..., None] >> shifts) & (2**_BITS_OF_NIBBLE - 1)
    weights = nibbles.reshape(outputs, -1)[:, :inputs] - _NIBBLE_OFFSET
    grouped = weights.to(scale.dtype).reshape(outputs, scale.shape[1], -1)
    dequantised: Tensor = (grouped * scale[..., None]).reshape(outputs, inputs)
    return dequantised


def _activations(output: Path) -> str:
    """ "int" or "float": to what activations are rounded; empty: they are not."""
    groups = quantization(output).get("config_groups", {}).values()
    found = {(group["input_activations"] or {}).get("type", "") for group in groups}
    return str(found.pop()) if found else ""


def _rounding(kind: str) -> Callable[[torch.nn.Module, tuple[Tensor]], Tensor]:
    def rounded(_: torch.nn.Module, given: tuple[Tensor]) -> Tensor:
        (values,) = given
        scale = values.abs().amax(-1, keepdim=True) / _HALF_RANGE[kind]
        scale = scale.masked_fill(scale == 0, torch.finfo(scale.dtype).eps)
        if kind == "int":
            return (values / scale).round().clamp(*_INT8_RANGE) * scale
        limit = _HALF_RANGE[kind]
        return (values / scale).clamp(-limit, limit).to(FLOAT8).to(values.dtype) * scale

    return rounded
