"""ONNX with 8-bit weights, run by ONNX Runtime: the format of CPUs without OpenVINO.

``onnx-int8``: Q/DQ around each product, scales of the activations found on calibration windows.
``onnx-int8-dynamic``: activations are quantised as they come, by what is in them.
Both keep weights signed, symmetric and per output channel, activations unsigned per tensor
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

from millrace_compressor.jobs import onnx_export, onnx_rows, onnx_weights
from millrace_compressor.jobs.format import Conversion, Tokens
from millrace_compressor.jobs.onnx_session import Artifact

DYNAMIC = "onnx-int8-dynamic"
_CPU_INFO = Path("/proc/cpuinfo")
_X86 = frozenset({"x86_64", "AMD64", "i686"})
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


class OnnxRuntime:
    """``target``: how its activations are quantised."""

    def __init__(self, target: str) -> None:
        self._is_dynamic = target == DYNAMIC

    def convert(self, conversion: Conversion, output: Path) -> None:
        graph = onnx_export.export(conversion.model, output)
        with tempfile.TemporaryDirectory(dir=output) as folder:
            exported = Path(folder)
            onnx_export.save(graph, exported)
            if self._is_dynamic:
                _quantise_dynamic(exported)
            else:
                _quantise_static(exported, conversion.calibration())
            graph = onnx.load(exported / onnx_export.MODEL_FILE)
        onnx_rows.quantise(graph.graph)
        onnx_export.save(graph, output)

    def inspect(self, output: Path) -> Mapping[str, float]:
        graph = onnx_weights.load(output).graph
        onnx_weights.require_quantised(graph, "int8")
        if not self._is_dynamic:
            onnx_weights.require_quantised_activations(graph)
        return onnx_weights.shares(graph)

    def size_bytes(self, output: Path) -> int:
        return onnx_export.size_bytes(output)

    def open(self, output: Path, threads: int) -> Artifact:
        return Artifact(output, threads, "int8")

    def exact(self, output: Path, threads: int) -> Artifact:
        """The same: that activations are rounded is part of the graph."""
        return self.open(output, threads)


def _quantise_dynamic(folder: Path) -> None:
    path = folder / onnx_export.MODEL_FILE
    quantization.quantize_dynamic(
        path,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=needs_reduced_range(),
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def _quantise_static(folder: Path, windows: Tokens) -> None:
    path = folder / onnx_export.MODEL_FILE
    graph = onnx_weights.load(folder).graph
    quantization.quantize_static(
        path,
        path,
        _Windows(graph, windows),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        # Only products with a weight: the attention's own have two activations.
        nodes_to_quantize=[node.name for node, _ in onnx_weights.multiplied_weights(graph)],
        per_channel=True,
        reduce_range=needs_reduced_range(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        # What comes out stays as it is: rounding it again would only lose.
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]},
    )


class _Windows:
    """Windows as ONNX Runtime's ``CalibrationDataReader``: one at a time, with an empty past."""

    def __init__(self, graph: onnx.GraphProto, windows: Tokens) -> None:
        self._feeds = feeds(graph, windows)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def feeds(graph: onnx.GraphProto, windows: Tokens) -> Iterator[dict[str, NDArray[Any]]]:
    """The inputs of an exported graph for each window alone."""
    past = {}
    for port in graph.input:
        if port.name.startswith("past_key_values."):
            kind, dims = port.type.tensor_type, port.type.tensor_type.shape.dim
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            past[port.name] = np.zeros((1, dims[1].dim_value, 0, dims[3].dim_value), dtype)
    for window in windows:
        yield {
            "input_ids": window[None],
            "attention_mask": np.ones((1, len(window)), np.int64),
            "position_ids": np.arange(len(window))[None],
            **past,
        }


def needs_reduced_range(machine: str | None = None, cpu_info: Path = _CPU_INFO) -> bool:
    """Whether weights have 7 bits: an x86 without VNNI saturates sums of 8-bit products."""
    if (machine or platform.machine()) not in _X86:
        return False
    try:
        return not _DOT_PRODUCTS & set(cpu_info.read_text().split())
    except OSError:
        return True
