"""What the weights of an ONNX graph are, by its own bytes: which are multiplied, and in what type.

A weight is a matrix among the initialisers. Between it and the product may lie what turns it back
into floating point (DequantizeLinear), or other operators that leave its elements as they are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from millrace_compressor.jobs.onnx_export import MODEL_FILE
from millrace_runtime.jobs import JobError

PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})
_THROUGH = frozenset({"DequantizeLinear", "Transpose", "Cast", "Identity"})
_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
}
_MATRIX_DIMENSIONS = 2
# Some products are of two activations; all that have a weight should be quantised.
_LEAST_SHARE = 0.9


def load(output: Path) -> onnx.ModelProto:
    """The graph without its weights' bytes."""
    return onnx.load(output / MODEL_FILE, load_external_data=False)


def shares(graph: onnx.GraphProto) -> dict[str, float]:
    """The share of all matrices' elements by precision."""
    matrices = [t for t in graph.initializer if len(t.dims) >= _MATRIX_DIMENSIONS]
    return _shares(matrices)


def multiplied_weights(
    graph: onnx.GraphProto,
) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Each product that has a weight, and the initialiser that is its weight."""
    initialisers = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            name = node.input[1]
            while name in makers and makers[name].op_type in _THROUGH:
                name = makers[name].input[0]
            if name in initialisers and len(initialisers[name].dims) >= _MATRIX_DIMENSIONS:
                yield node, initialisers[name]


def require_quantised(graph: onnx.GraphProto, precision: str) -> None:
    """
    Raises:
        JobError: QUANTIZATION_SKIPPED, when the weights that are multiplied are not in
            ``precision``; with the share that is.
    """
    share = _shares([weight for _, weight in multiplied_weights(graph)]).get(precision, 0.0)
    if share < _LEAST_SHARE:
        raise JobError(
            "QUANTIZATION_SKIPPED",
            f"only {share:.0%} of the weights that are multiplied are in {precision}, "
            f"{_LEAST_SHARE:.0%} are needed",
        )


def require_quantised_activations(graph: onnx.GraphProto) -> None:
    """
    Raises:
        JobError: QUANTIZATION_SKIPPED, naming the first product whose activations are not
            rounded by a QuantizeLinear and a DequantizeLinear.
    """
    makers: Mapping[str, onnx.NodeProto] = {n: node for node in graph.node for n in node.output}

    def is_made_by(name: str, kind: str) -> bool:
        return name in makers and makers[name].op_type == kind

    for node, _ in multiplied_weights(graph):
        source = node.input[0]
        is_rounded = is_made_by(source, "DequantizeLinear") and is_made_by(
            makers[source].input[0], "QuantizeLinear"
        )
        if not is_rounded:
            raise JobError(
                "QUANTIZATION_SKIPPED", f"the activations of {node.name} are not quantised"
            )


def _shares(tensors: list[onnx.TensorProto]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for tensor in tensors:
        known = _NAMES.get(tensor.data_type)
        counts[known or TensorProto.DataType.Name(tensor.data_type).lower()] += prod(tensor.dims)
    return {precision: count / counts.total() for precision, count in counts.items()}
