"""OpenVINO IR, run by OpenVINO GenAI: the format of CPUs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino

from millrace_compressor.jobs import evaluate, openvino_bits, openvino_layers, quantize
from millrace_compressor.jobs.format import Conversion, Recipe
from millrace_compressor.jobs.graphs import MODEL_FILE
from millrace_compressor.jobs.openvino_layers import Layer
from millrace_runtime.jobs import JobError

# What was ordered of each layer, so that what was made can be held against it.
LAYERS_FILE = "layers.json"
_FLOAT = "openvino-fp32"
_INT8 = "openvino-int8"
_INT4 = "openvino-int4"
_ACTIVATIONS = "openvino-int8-activations"
_DTYPES = {_FLOAT: "float32", _INT8: "int8", _INT4: "int4", _ACTIVATIONS: "int8-activations"}
# Norms and rotary tables stay in floating point; they are a percent or two.
_LEAST_INT8_SHARE = 0.9
_LEAST_FED_SHARE = 0.9

Change = Callable[[openvino.Model], openvino.Model]


class OpenvinoIr:
    """``target``: how its weights are kept."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._dtype = _DTYPES[target]

    def convert(self, conversion: Conversion, output: Path) -> None:
        """
        Raises:
            JobError: CHECKPOINT_INVALID, or as ``openvino_bits`` says.
        """
        exported = self._target if self._target in (_FLOAT, _INT8) else _FLOAT
        quantize.convert(conversion.model, exported, output, conversion.graphs)
        for change in self._changes(conversion, output):
            openvino_bits.rewrite(output, change)

    def _changes(self, conversion: Conversion, output: Path) -> list[Change]:
        changes: list[Change] = []
        if self._target == _ACTIVATIONS:
            changes.append(lambda model: openvino_bits.activations(conversion, model))
        if self._target == _INT4:
            changes.append(lambda model: _int4(conversion, model, output))
        if conversion.recipe.kv_cache_int8:
            changes.append(openvino_bits.cache_in_8_bits)
        return changes

    def inspect(self, output: Path) -> Mapping[str, float]:
        model = openvino.Core().read_model(output / MODEL_FILE)
        shares = openvino_layers.weight_shares(model)
        found = openvino_layers.layers(model)
        if self._target == _INT4:
            _require_bits(found, _ordered_bits(output))
        if self._target == _ACTIVATIONS:
            _require_fed_in_8_bits(found)
        small = shares.get("int8", 0) + shares.get("int4", 0)
        if self._target != _FLOAT and small < _LEAST_INT8_SHARE:
            raise JobError(
                "QUANTIZATION_SKIPPED",
                f"only {small:.0%} of the weights are in 8 bits or fewer, "
                f"{_LEAST_INT8_SHARE:.0%} are needed",
            )
        return shares

    def size_bytes(self, output: Path) -> int:
        return (output / quantize.WEIGHTS_FILE).stat().st_size

    def open(self, output: Path, threads: int) -> evaluate.Artifact:
        return evaluate.Artifact(output, threads, self._dtype)

    def exact(self, output: Path, threads: int) -> evaluate.Artifact:
        return evaluate.Artifact(output, threads, self._dtype, evaluate.EXACT)


def _int4(conversion: Conversion, model: openvino.Model, output: Path) -> openvino.Model:
    names = [layer.name for layer in openvino_layers.layers(model)]
    made = openvino_bits.int4(conversion, model)
    document = _ordered(conversion.recipe, names, openvino_layers.layers(made))
    (output / LAYERS_FILE).write_text(json.dumps(document, indent=1) + "\n")
    return made


def _ordered(recipe: Recipe, names: list[str], made: list[Layer]) -> dict[str, object]:
    """``bits`` is what each layer should have, ``group_size`` what each got."""
    return {
        "weight_method": recipe.weight_method or openvino_bits.METHOD,
        "bits": {name: recipe.layer_bits.get(name, 4) for name in names},
        "group_size": {layer.name: layer.group_size for layer in made if layer.group_size},
    }


def _ordered_bits(output: Path) -> Mapping[str, int]:
    if not (output / LAYERS_FILE).exists():
        raise JobError("QUANTIZATION_SKIPPED", f"the artifact has no {LAYERS_FILE}")
    bits: dict[str, int] = json.loads((output / LAYERS_FILE).read_text())["bits"]
    return bits


def _require_bits(found: list[Layer], bits: Mapping[str, int]) -> None:
    """
    Raises:
        JobError: QUANTIZATION_SKIPPED, naming the first layer that is not in its bits.
    """
    precisions = {layer.name: layer.precision for layer in found}
    for name, count in bits.items():
        if precisions.get(name) != f"int{count}":
            raise JobError(
                "QUANTIZATION_SKIPPED",
                f"the layer {name!r} is in {precisions.get(name, 'nothing')}, not in {count} bits",
            )


def _require_fed_in_8_bits(found: list[Layer]) -> None:
    """
    Raises:
        JobError: QUANTIZATION_SKIPPED, with the share that multiplies in 8 bits.
    """
    done = [layer for layer in found if layer.is_fed_in_8_bits and layer.precision == "int8"]
    share = sum(layer.elements for layer in done) / max(1, sum(layer.elements for layer in found))
    if share < _LEAST_FED_SHARE:
        raise JobError(
            "QUANTIZATION_SKIPPED",
            f"only {share:.0%} of the layers' weights are multiplied with 8-bit activations, "
            f"{_LEAST_FED_SHARE:.0%} are needed",
        )
