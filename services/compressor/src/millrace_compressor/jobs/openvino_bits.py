"""Fewer bits than NNCF's 8-bit weights, on an IR whose weights are floating.

int4         weights in groups that share a scale and a zero point; the embedding and the output
             layer, by which all tokens pass, stay in 8 bits, as do layers that the recipe names
activations  8-bit weights a row, and 8-bit activations with a scale that calibration found;
             SmoothQuant (arXiv:2211.10438) moves outliers from those into the weights. The
             output layer's and the attention's own activations stay as they are: GenAI replaces
             the attention by a paged one, which has its own 8 bits, those of the cache

https://docs.openvino.ai: "4-bit Weight Quantization", "Basic Quantization Flow".
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
from numpy.typing import NDArray

from millrace_compressor.jobs import openvino_layers
from millrace_compressor.jobs.format import Conversion, Method, Tokens
from millrace_compressor.jobs.graphs import MODEL_FILE
from millrace_runtime.jobs import JobError

GROUP_SIZE = 64
# A power of two; below, the scales weigh more than what the fourth bit saves.
LEAST_GROUP_SIZE = 8
METHOD: Method = "WEIGHT_METHOD_AWQ"
_CACHE_OPTION = ("runtime_options", "KV_CACHE_PRECISION")
_OPTIONS: Mapping[str, dict[str, bool]] = {
    "WEIGHT_METHOD_ROUND_TO_NEAREST": {},
    "WEIGHT_METHOD_AWQ": {"awq": True},
    "WEIGHT_METHOD_GPTQ": {"gptq": True},
    "WEIGHT_METHOD_SCALE_ESTIMATION": {"scale_estimation": True},
}


def rewrite(output: Path, change: Callable[[openvino.Model], openvino.Model]) -> None:
    """Put the IR in ``output`` through ``change``."""
    changed = change(openvino.Core().read_model(output / MODEL_FILE))
    temporary = output / f"changed_{MODEL_FILE}"
    # Its weights may still be mapped from the file that is replaced.
    openvino.save_model(changed, temporary, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        temporary.with_suffix(suffix).replace((output / MODEL_FILE).with_suffix(suffix))


def int4(conversion: Conversion, model: openvino.Model) -> openvino.Model:
    """
    Raises:
        JobError: LAYER_UNKNOWN or GROUP_SIZE_INVALID: the recipe does not fit the model;
            CALIBRATION_DATA_MISSING.
    """
    recipe = conversion.recipe
    kept = _kept(recipe.layer_bits, model)
    options = _OPTIONS[recipe.weight_method or METHOD]
    windows = conversion.calibration() if options else None
    try:
        made = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            group_size=recipe.group_size or GROUP_SIZE,
            ignored_scope=nncf.IgnoredScope(names=kept),
            dataset=None if windows is None else _dataset(windows),
            subset_size=1 if windows is None else len(windows),
            advanced_parameters=_fallback(recipe.group_size),
            **options,
        )
    except nncf.InvalidGroupSizeError as error:
        raise JobError("GROUP_SIZE_INVALID", str(error)) from error
    return _rest_in_8_bits(_without_float_cache(made))


def activations(conversion: Conversion, model: openvino.Model) -> openvino.Model:
    """
    Raises:
        JobError: CALIBRATION_DATA_MISSING.
    """
    windows = conversion.calibration()
    output = openvino_layers.output_layer(model)
    made = nncf.quantize(
        model,
        _dataset(windows),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(windows),
        ignored_scope=nncf.IgnoredScope(
            names=[output] if output else [],
            types=["ScaledDotProductAttention", "Gather"],
            validate=False,
        ),
    )
    return _rest_in_8_bits(_without_float_cache(made))


def cache_in_8_bits(model: openvino.Model) -> openvino.Model:
    """What compiles the IR reads this of it, GenAI's pipeline as well as OpenVINO itself."""
    model.set_rt_info("u8", list(_CACHE_OPTION))
    return model


def _kept(bits: Mapping[str, int], model: openvino.Model) -> list[str]:
    """The names in the graph of the layers that stay in 8 bits."""
    nodes = {layer.name: layer.node for layer in openvino_layers.layers(model)}
    if unknown := sorted(set(bits) - set(nodes)):
        raise JobError("LAYER_UNKNOWN", f"the model has no layer {unknown[0]!r}")
    return [nodes[name] for name, count in bits.items() if count != 4]


def _fallback(group_size: int | None) -> nncf.AdvancedCompressionParameters:
    """A size that was asked for must fit; the default gives way to the largest that does."""
    modes = nncf.GroupSizeFallbackMode
    return nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=modes.ADJUST if group_size is None else modes.ERROR,
        min_adjusted_group_size=LEAST_GROUP_SIZE,
    )


def _rest_in_8_bits(model: openvino.Model) -> openvino.Model:
    """What is still floating; NNCF leaves alone what has fewer bits already."""
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _without_float_cache(model: openvino.Model) -> openvino.Model:
    """As optimum does: it asks for a floating cache only beside floating weights."""
    path = list(_CACHE_OPTION)
    if model.has_rt_info(path):
        options = model.get_rt_info("runtime_options").value
        options.pop("KV_CACHE_PRECISION")
        model.set_rt_info(options, "runtime_options")
    return model


def _dataset(windows: Tokens) -> nncf.Dataset:
    """Each window as a sequence of its own: NNCF resets the state before each."""
    return nncf.Dataset(list(windows), _inputs)


def _inputs(ids: NDArray[np.int64]) -> dict[str, Any]:
    length = len(ids)
    return {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
