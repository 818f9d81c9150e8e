"""Explicit quantisation of an exported graph, as TensorRT's builder takes it.

Around each product with a weight, and nowhere else:

    x ─► QuantizeLinear ─► DequantizeLinear ─► MatMul     one scale a tensor
         weight in 8 bits ─► DequantizeLinear ──┘         int8: one an output channel; fp8: one

TensorRT quantises symmetrically: zero points are 0, scales are constants of the graph's own
floating-point type, and nothing is added in int32 (NVIDIA TensorRT, "Working with Quantized
Types"; FP8 products have one scale a tensor). Scales are the largest magnitude / 127 or / 448.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from millrace_compressor.jobs import onnx_export, onnx_weights
from millrace_compressor.jobs.format import Tokens
from millrace_compressor.jobs.onnx_model import feeds

_AMAX = "millrace.amax."


@dataclass(frozen=True)
class Grid:
    """What values are rounded to. ``axis`` of a weight's own scales; None: one for all of it."""

    data_type: int
    largest: float
    axis: int | None

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values``, in units of their scale, as the grid has them."""
        clipped = values.clip(-self.largest, self.largest)
        if self.data_type == TensorProto.INT8:
            return np.asarray(np.rint(clipped), np.int8)
        return np.asarray(clipped, ml_dtypes.float8_e4m3fn)


INT8 = Grid(TensorProto.INT8, 127, axis=1)
FP8 = Grid(TensorProto.FLOAT8E4M3FN, 448, axis=None)


def quantise(graph: onnx.GraphProto, amax: Mapping[str, float], grid: Grid) -> None:
    """Put Q/DQ around the products of ``graph``; ``amax`` as ``observe`` returns it."""
    products = list(onnx_weights.multiplied_weights(graph))
    activations = {node.input[0]: node.input[0] for node, _ in products}
    made: list[onnx.NodeProto] = []
    dtype = numpy_helper.to_array(products[0][1]).dtype
    for name in activations:
        scale = _scale(np.array(amax[name]), grid, dtype)
        activations[name] = _pair(graph, made, name, scale, grid)
    for weight in {weight.name: weight for _, weight in products}.values():
        made.append(_weight(graph, weight, grid))
    for node, weight in products:
        node.input[0] = activations[node.input[0]]
        node.input[1] = f"{weight.name}_dequantized"
    _sort(graph, made)


def _scale(amax: NDArray[Any], grid: Grid, dtype: Any) -> NDArray[Any]:
    """Scales of ``dtype``, none of them 0: what is all zero may have any."""
    scales = (amax / grid.largest).astype(dtype)
    return np.where(scales > 0, scales, np.ones_like(scales))


def _pair(
    graph: onnx.GraphProto,
    made: list[onnx.NodeProto],
    name: str,
    scale: NDArray[Any],
    grid: Grid,
) -> str:
    """Q and DQ behind the activation ``name``; what the DQ makes."""
    inputs = _constants(graph, name, scale, grid)
    quantized, dequantized = f"{name}_quantized", f"{name}_dequantized"
    made += [
        helper.make_node("QuantizeLinear", [name, *inputs], [quantized], f"{name}/Q"),
        helper.make_node("DequantizeLinear", [quantized, *inputs], [dequantized], f"{name}/DQ"),
    ]
    return dequantized


def _weight(graph: onnx.GraphProto, weight: onnx.TensorProto, grid: Grid) -> onnx.NodeProto:
    """``weight`` in 8 bits in its place, and the DQ behind it."""
    values = numpy_helper.to_array(weight)
    wide = values.astype(np.float32)
    amax = np.abs(wide).max() if grid.axis is None else np.abs(wide).max(axis=1 - grid.axis)
    scale = _scale(np.asarray(amax), grid, values.dtype)
    rounded = grid.rounded(wide / scale.astype(np.float32))
    graph.initializer.remove(weight)
    graph.initializer.append(
        helper.make_tensor(
            f"{weight.name}_quantized", grid.data_type, values.shape, rounded.tobytes(), raw=True
        )
    )
    axis: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
    return helper.make_node(
        "DequantizeLinear",
        [f"{weight.name}_quantized", *_constants(graph, weight.name, scale, grid)],
        [f"{weight.name}_dequantized"],
        f"{weight.name}/DQ",
        **axis,
    )


def _constants(
    graph: onnx.GraphProto, name: str, scale: NDArray[Any], grid: Grid
) -> tuple[str, str]:
    """The scale, and a zero point of 0 of the grid's type, which says what Q rounds to."""
    zeros = grid.rounded(np.zeros(scale.shape, np.float32))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.initializer.append(
        helper.make_tensor(f"{name}_zero", grid.data_type, scale.shape, zeros.tobytes(), raw=True)
    )
    return f"{name}_scale", f"{name}_zero"


def _sort(graph: onnx.GraphProto, made: Sequence[onnx.NodeProto]) -> None:
    """Put each new node behind what makes its input, as ONNX wants nodes in order."""
    waiting: dict[str, list[onnx.NodeProto]] = {}
    for node in made:
        waiting.setdefault(node.input[0], []).append(node)
    known = [tensor.name for tensor in graph.initializer]
    known += [port.name for port in graph.input]
    ordered: list[onnx.NodeProto] = []
    for name in known:
        _release(name, waiting, ordered)
    for node in graph.node:
        ordered.append(node)
        for name in node.output:
            _release(name, waiting, ordered)
    del graph.node[:]
    graph.node.extend(ordered)


def _release(
    name: str, waiting: dict[str, list[onnx.NodeProto]], ordered: list[onnx.NodeProto]
) -> None:
    for node in waiting.pop(name, ()):
        ordered.append(node)
        _release(node.output[0], waiting, ordered)


def observe(
    model: onnx.ModelProto, windows: Tokens, folder: Path, threads: int
) -> dict[str, float]:
    """The largest magnitude of each activation that is multiplied with a weight, by its name.

    ``folder`` takes a copy of ``model`` with what tells it as further outputs.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = {node.input[0] for node, _ in onnx_weights.multiplied_weights(model.graph)}
    for name in names:
        _watch(watched.graph, name)
    onnx_export.save(watched, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session: Any = onnxruntime.InferenceSession(
        folder / onnx_export.MODEL_FILE, options, providers=["CPUExecutionProvider"]
    )
    amax = dict.fromkeys(names, 0.0)
    for feed in feeds(model.graph, windows):
        told = session.run([_AMAX + name for name in amax], feed)
        amax = {name: max(amax[name], float(v)) for name, v in zip(amax, told, strict=True)}
    return amax


def _watch(graph: onnx.GraphProto, name: str) -> None:
    """Give ``graph`` the output ``max |name|``, float32."""
    graph.node.extend(
        [
            helper.make_node("Cast", [name], [f"{_AMAX}{name}.wide"], to=TensorProto.FLOAT),
            helper.make_node("Abs", [f"{_AMAX}{name}.wide"], [f"{_AMAX}{name}.abs"]),
            helper.make_node("ReduceMax", [f"{_AMAX}{name}.abs"], [_AMAX + name], keepdims=0),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(_AMAX + name, TensorProto.FLOAT, []))
