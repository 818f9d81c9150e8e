"""What the layers of an OpenVINO IR are, by its own constants and graph.

A layer is a product of something with weights. Between the weights and the product lies what
turns them back into floating point; before the other side may lie a FakeQuantize, by which the CPU
plugin multiplies in 8 bits (docs.openvino.ai: "Low Precision Transformations").
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import openvino

_NAMES = {
    "u4": "int4",
    "i4": "int4",
    "u8": "int8",
    "i8": "int8",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
}
_PREFIX = "__module."  # of what tracing makes of a module
_WEIGHTS_PORT = 1
_MATRIX_DIMENSIONS = 2
_GROUPED_DIMENSIONS = 3
_DECOMPRESSION = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose"})
_RESHAPING = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze"})


@dataclass(frozen=True)
class Layer:
    """One product with weights.

    Attributes:
        name: the module's: ``model.layers.0.mlp.up_proj``.
        node: the product's own name in the graph.
        precision: of the weights: "int4", "int8", "float32", …
        elements: of the weights.
        group_size: weights that share a scale; 0: a whole row.
        is_fed_in_8_bits: whether what it multiplies is quantised.
    """

    name: str
    node: str
    precision: str
    elements: int
    group_size: int
    is_fed_in_8_bits: bool


def layers(model: openvino.Model) -> list[Layer]:
    """Every layer but the output's, in the graph's order."""
    last = output_layer(model)
    return [layer for layer in _products(model) if layer.node != last]


def output_layer(model: openvino.Model) -> str:
    """The name in the graph of the product that makes the logits; empty: it is not found.

    Behind it is only what changes each logit by itself (Granite and Gemma scale or cap them).
    """
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        if not node.input_values():
            return ""
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def weight_shares(model: openvino.Model) -> dict[str, float]:
    """The share of the weights' elements by precision, without their scales and zero points."""
    counts: Counter[str] = Counter()
    for node in model.get_ops():
        shape = list(node.shape) if node.get_type_name() == "Constant" else []
        kind = node.get_element_type().get_type_name() if shape else ""
        if len(shape) >= _MATRIX_DIMENSIONS and shape[-1] > 1 and kind in _NAMES:
            counts[_NAMES[kind]] += prod(shape)
    return {precision: count / counts.total() for precision, count in counts.items()}


def _products(model: openvino.Model) -> Iterator[Layer]:
    for node in model.get_ordered_ops():
        weights = _weights(node) if node.get_type_name() == "MatMul" else None
        if weights is not None:
            name = node.get_friendly_name()
            shape = list(weights.shape)
            yield Layer(
                name=name.split("/")[0].removeprefix(_PREFIX),
                node=name,
                precision=_NAMES.get(weights.get_element_type().get_type_name(), "other"),
                elements=prod(shape),
                group_size=shape[-1] if len(shape) >= _GROUPED_DIMENSIONS else 0,
                is_fed_in_8_bits=_is_quantised(node.input_value(0).get_node()),
            )


def _weights(product: Any) -> Any:
    """The constant that a product multiplies with; None: both of its sides are computed."""
    node = product.input_value(_WEIGHTS_PORT).get_node()
    while node.get_type_name() in _DECOMPRESSION:
        node = node.input_value(0).get_node()
    is_matrix = node.get_type_name() == "Constant" and len(node.shape) >= _MATRIX_DIMENSIONS
    return node if is_matrix else None


def _is_quantised(node: Any) -> bool:
    while node.get_type_name() in _RESHAPING:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")
