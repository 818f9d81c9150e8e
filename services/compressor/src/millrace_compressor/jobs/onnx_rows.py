"""Embeddings of an ONNX graph in 8 bits: a scale a row, applied to the rows that are looked up.

ONNX Runtime's quantisers give a table one scale for all its rows, or turn all of it back into
floating point at each token. Here a table is looked up as it is kept, and its scales beside it.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_LARGEST = 127
_MATRIX_DIMENSIONS = 2
_AXES = "millrace.last_axis"


def quantise(graph: onnx.GraphProto) -> None:
    """Replace each float32 table that is only looked up by its rows."""
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == _MATRIX_DIMENSIONS
    }
    found = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    used = [name for node in graph.node for name in node.input]
    lookups = [node for node in found if used.count(node.input[0]) == 1 and not _axis(node)]
    for node in lookups:
        table = tables[node.input[0]]
        rows, scales = rounded_rows(numpy_helper.to_array(table))
        graph.initializer.remove(table)
        graph.initializer.extend(
            [
                numpy_helper.from_array(rows, f"{table.name}_quantized"),
                numpy_helper.from_array(scales, f"{table.name}_scale"),
            ]
        )
        _look_up(graph, node, table.name)
    if lookups:
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), _AXES))


def rounded_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows in int8 and the scale of each, symmetric; ``rows * scales[:, None]`` is the table."""
    scales = np.abs(table).max(axis=1) / _LARGEST
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    rows = np.rint(table / scales[:, None]).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return rows, scales


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)


def _look_up(graph: onnx.GraphProto, node: onnx.NodeProto, table: str) -> None:
    """``node`` becomes Cast(rows[ids]) * scales[ids], at its place in the graph."""
    ids, out = node.input[1], node.output[0]
    made = [
        helper.make_node("Gather", [f"{table}_quantized", ids], [f"{out}_rows"]),
        helper.make_node("Cast", [f"{out}_rows"], [f"{out}_wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}_scale", ids], [f"{out}_scale"]),
        helper.make_node("Unsqueeze", [f"{out}_scale", _AXES], [f"{out}_scales"]),
        helper.make_node("Mul", [f"{out}_wide", f"{out}_scales"], [out]),
    ]
    at = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, one in enumerate(made):
        one.name = f"{node.name}/{one.op_type}_{offset}"
        graph.node.insert(at + offset, one)
