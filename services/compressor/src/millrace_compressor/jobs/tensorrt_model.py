"""ONNX for TensorRT's builder, and the engine where TensorRT is present: the format of NVIDIA's
``tensorrt_plan``.

Weights, activations and cache are float16 but for what transformers computes in float32 (norms,
softmax); ``tensorrt-int8`` and ``tensorrt-fp8`` round around each product (``tensorrt_qdq.py``).
What is measured is the graph, through ONNX Runtime on the CPU, each Q/DQ computed as it stands.
"""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from millrace_compressor.jobs import onnx_export, onnx_weights, tensorrt_engine, tensorrt_qdq
from millrace_compressor.jobs.format import Conversion, Logits, Tokens
from millrace_compressor.jobs.onnx_session import Artifact
from millrace_compressor.jobs.tensorrt_qdq import FP8, INT8, Grid

ENGINE_FILE = "engine.json"
_GRIDS: Mapping[str, Grid] = {"tensorrt-int8": INT8, "tensorrt-fp8": FP8}
_PRECISIONS = {
    "tensorrt-fp16": "float16",
    "tensorrt-int8": "int8",
    "tensorrt-fp8": "float8_e4m3fn",
}
# ONNX Runtime would make products of integers out of Q/DQ, which has none of FP8.
_AS_IT_STANDS = MappingProxyType({"session.disable_quant_qdq": "1"})


class TensorRt:
    """``target``: what its products are rounded to."""

    def __init__(self, target: str) -> None:
        self._grid = _GRIDS.get(target)
        self._precision = _PRECISIONS[target]
        # ``parity.LIMITS`` has one name for all that has eight bits.
        self._dtype = "float16" if self._grid is None else "int8"

    def convert(self, conversion: Conversion, output: Path) -> None:
        model = onnx_export.export(conversion.model, output, torch.float16)
        if self._grid is not None:
            amax = _observed(model, conversion.calibration(), output, conversion.threads)
            tensorrt_qdq.quantise(model.graph, amax, self._grid)
        onnx_export.save(model, output)
        config = json.loads((output / "config.json").read_text())
        context_tokens = int(config["max_position_embeddings"])
        told = tensorrt_engine.build(
            output, inputs_of(model.graph), tensorrt_engine.profiles(context_tokens)
        )
        (output / ENGINE_FILE).write_text(json.dumps({"engine": told}) + "\n")

    def inspect(self, output: Path) -> Mapping[str, float]:
        graph = onnx_weights.load(output).graph
        onnx_weights.require_quantised(graph, self._precision)
        if self._grid is not None:
            onnx_weights.require_quantised_activations(graph)
        return onnx_weights.shares(graph)

    def size_bytes(self, output: Path) -> int:
        """Of the engine where there is one, else of the ONNX that it is to be built from."""
        plan = output / tensorrt_engine.PLAN_FILE
        return plan.stat().st_size if plan.exists() else onnx_export.size_bytes(output)

    def open(self, output: Path, threads: int) -> "Graph":
        return Graph(output, threads, self._dtype)

    def exact(self, output: Path, threads: int) -> "Graph":
        """The same: that activations are rounded is part of the graph."""
        return self.open(output, threads)


class Graph:
    """The graph on a CPU. It says what the engine would say, and nothing of how fast."""

    def __init__(self, output: Path, threads: int, dtype: str) -> None:
        self.dtype = dtype
        self._engine = json.loads((output / ENGINE_FILE).read_text())["engine"]
        self._artifact = Artifact(output, threads, dtype, _AS_IT_STANDS)

    def logits(self, ids: Tokens) -> Logits:
        return self._artifact.logits(ids)

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        return self._artifact.answer(prompts, tokens, stops)

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        """Not measured: the runtime that serves the artifact is not on this machine."""
        absent = dict.fromkeys(("load_seconds", "first_token_seconds", "token_seconds"))
        return {**absent, "engine": self._engine}


def inputs_of(graph: onnx.GraphProto) -> dict[str, tuple[str | int, ...]]:
    """The dimensions of each input; those that vary by their name."""
    return {
        port.name: tuple(dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim)
        for port in graph.input
    }


def _observed(
    model: onnx.ModelProto, windows: Tokens, output: Path, threads: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=output) as folder:
        return tensorrt_qdq.observe(model, windows, Path(folder), threads)
