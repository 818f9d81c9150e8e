"""Graphs for TensorRT: its rules by structure, their numbers through ONNX Runtime, and the calls
that build an engine, with TensorRT's bindings played."""

import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from test_compress import Store
from test_onnx_targets import run, with_training_data

from millrace_compressor.jobs import onnx_export, onnx_weights, tensorrt_engine
from millrace_compressor.jobs.tensorrt_engine import Profile, build, profiles
from millrace_compressor.jobs.tensorrt_model import ENGINE_FILE, TensorRt, inputs_of
from millrace_compressor.jobs.tensorrt_qdq import FP8, INT8, Grid
from millrace_runtime.jobs import JobError

pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = ("tensorrt-fp16", "tensorrt-int8", "tensorrt-fp8")
GRIDS = {"tensorrt-int8": INT8, "tensorrt-fp8": FP8}
PRECISIONS = {"tensorrt-int8": "int8", "tensorrt-fp8": "float8_e4m3fn"}
LAYERS_PRODUCTS = 2 * 7 + 1  # q, k, v, o, gate, up and down of each layer, and the head


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return with_training_data(tmp_path_factory.mktemp("store"))


def graph_of(store: Store, target: str) -> onnx.GraphProto:
    return onnx.load(run(store, target)[0] / onnx_export.MODEL_FILE).graph


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def nodes_of(graph: onnx.GraphProto, kind: str) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.op_type == kind)


@pytest.mark.parametrize("target", TARGETS)
def test_the_graph_is_close_and_no_engine_is_claimed(store: Store, target: str) -> None:
    artifact, measured = run(store, target)
    assert measured["artifact_perplexity"] == pytest.approx(
        measured["original_perplexity"], rel=0.02
    )
    assert measured["kl_divergence"] < 0.01
    assert measured["first_token_seconds"] is None, "no engine: nothing says how fast it is"
    assert json.loads((artifact / "quality.json").read_text())["engine"] == tensorrt_engine.ABSENT
    assert not (artifact / tensorrt_engine.PLAN_FILE).exists()
    onnx.checker.check_model(str(artifact / onnx_export.MODEL_FILE))


@pytest.mark.parametrize("target", PRECISIONS)
def test_all_that_is_multiplied_is_in_eight_bits(store: Store, target: str) -> None:
    artifact, measured = run(store, target)
    assert measured["weight_shares"].keys() == {PRECISIONS[target], "float16"}
    assert measured["weight_shares"][PRECISIONS[target]] == pytest.approx(0.8, abs=0.01)
    graph = onnx_weights.load(artifact).graph
    assert len(list(onnx_weights.multiplied_weights(graph))) == LAYERS_PRODUCTS
    with pytest.raises(JobError, match="only 0% of the weights that are multiplied"):
        TensorRt(target).inspect(run(store, "tensorrt-fp16")[0])


@pytest.mark.parametrize("target", PRECISIONS)
def test_scales_are_constants_and_zero_points_are_zero(store: Store, target: str) -> None:
    graph, grid = graph_of(store, target), GRIDS[target]
    known = constants(graph)
    rounds = [*nodes_of(graph, "QuantizeLinear"), *nodes_of(graph, "DequantizeLinear")]
    assert len(rounds) > LAYERS_PRODUCTS
    for node in rounds:
        scale, zero = known[node.input[1]], known[node.input[2]]
        assert scale.data_type == TensorProto.FLOAT16, "of the graph's own type"
        assert (numpy_helper.to_array(scale) > 0).all()
        assert zero.data_type == grid.data_type
        assert not any(zero.raw_data)
        assert zero.dims == scale.dims


@pytest.mark.parametrize(("target", "axes"), [("tensorrt-int8", [1]), ("tensorrt-fp8", [])])
def test_weights_have_the_scales_that_tensorrt_takes(
    store: Store, target: str, axes: list[int]
) -> None:
    graph = graph_of(store, target)
    known, makers = constants(graph), {n: node for node in graph.node for n in node.output}
    for product, weight in onnx_weights.multiplied_weights(graph):
        behind = makers[product.input[1]]
        assert (behind.op_type, behind.input[0]) == ("DequantizeLinear", weight.name)
        assert [attribute.i for attribute in behind.attribute] == axes
        per_channel = [weight.dims[1]] if axes else []
        assert list(known[behind.input[1]].dims) == per_channel
        activation = makers[product.input[0]]
        assert not known[activation.input[1]].dims, "activations have one scale a tensor"


def test_nothing_is_rounded_but_before_a_product(store: Store) -> None:
    """No int32 bias, and neither the attention's own products nor what is added to them."""
    graph = graph_of(store, "tensorrt-int8")
    assert not [t.name for t in graph.initializer if t.data_type == TensorProto.INT32]
    rounded = {node.output[0] for node in nodes_of(graph, "DequantizeLinear")}
    readers = {node.op_type for node in graph.node if rounded & set(node.input)}
    assert readers == {"MatMul"}
    attention = [node for node in nodes_of(graph, "MatMul") if not rounded & set(node.input)]
    assert len(attention) == 2 * 2 + 1  # scores and values of each layer, and rotary angles


def test_norms_and_softmax_stay_in_float32(store: Store) -> None:
    graph = graph_of(store, "tensorrt-fp16")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    for kind, expected in (("Softmax", 2), ("ReduceMean", 9)):
        found = [types[node.output[0]] for node in nodes_of(graph, kind)]
        assert found == [TensorProto.FLOAT] * expected


@pytest.mark.parametrize(
    ("grid", "values", "expected"),
    [
        (INT8, [0.4, 1.5, 2.5, 127.4, 999, -999], [0, 2, 2, 127, 127, -127]),
        (FP8, [0.0, 1.0, 17.0, 448.0, 9999, -9999], [0, 1, 16, 448, 448, -448]),
    ],
)
def test_grids_round_as_tensorrt_does(
    grid: Grid, values: list[float], expected: list[float]
) -> None:
    """Ties to even, saturated (TensorRT: Quantization Schemes)."""
    found = grid.rounded(np.array(values, np.float32))
    assert found.dtype == (np.int8 if grid is INT8 else ml_dtypes.float8_e4m3fn)
    assert found.astype(np.float32).tolist() == expected


class PlayedTensorRt:
    """What of the ``tensorrt`` module is called, in the order of the calls."""

    __version__ = "10.14.1"
    Logger = SimpleNamespace
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    def __init__(
        self, takes: bool = True, plan: bytes | None = b"engine", gpu: bool = True
    ) -> None:
        self.calls: list[Any] = []
        self.shapes: list[dict[str, Any]] = []
        self.takes, self.plan, self.gpu = takes, plan, gpu
        self.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})

    def Builder(self, logger: Any) -> "PlayedTensorRt":
        if not self.gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self

    def OnnxParser(self, network: Any, logger: Any) -> "PlayedTensorRt":
        self.calls.append("parser")
        return self

    def parse_from_file(self, path: str) -> bool:
        self.calls.append(("parse", Path(path).name))
        return self.takes

    num_errors = 1

    def get_error(self, at: int) -> str:
        return "no importer registered for op: MadeUp"

    def create_network(self, flags: int) -> str:
        self.calls.append(("network", flags))
        return "network"

    def create_builder_config(self) -> "PlayedTensorRt":
        self.calls.append("config")
        return self

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert (pool, size > 0) == ("workspace", True)

    def create_optimization_profile(self) -> "PlayedTensorRt":
        self.shapes.append({})
        return self

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[-1][name] = (least, usual, most)

    def add_optimization_profile(self, profile: Any) -> int:
        self.calls.append("profile")
        return len(self.shapes) - 1

    def create_timing_cache(self, content: bytes) -> bytes:
        self.calls.append(("cache", content))
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"timed")

    def build_serialized_network(self, network: str, config: Any) -> bytes | None:
        self.calls.append("build")
        return self.plan


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(**how: Any) -> PlayedTensorRt:
        played = PlayedTensorRt(**how)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(importlib, "import_module", lambda name: played)
        return played

    return use


INPUTS: dict[str, tuple[str | int, ...]] = {
    "input_ids": ("batch", "sequence"),
    "attention_mask": ("batch", "total"),
    "past_key_values.0.key": ("batch", 2, "past", 16),
}


def test_an_engine_is_built_in_order(tmp_path: Path, play: Any) -> None:
    played = play()
    (tmp_path / tensorrt_engine.TIMING_CACHE_FILE).write_bytes(b"earlier")
    told = build(tmp_path, INPUTS, profiles(128, batch=4))
    assert told == "built by TensorRT 10.14.1"
    assert played.calls == [
        ("network", 1 << 1),
        "parser",
        ("parse", "model.onnx"),
        "config",
        "profile",
        "profile",
        ("cache", b"earlier"),
        "build",
    ]
    assert (tmp_path / "model.plan").read_bytes() == b"engine"
    assert (tmp_path / tensorrt_engine.TIMING_CACHE_FILE).read_bytes() == b"timed"
    prompts, tokens = played.shapes
    assert prompts["input_ids"] == ((1, 1), (1, 32), (4, 128))
    assert prompts["past_key_values.0.key"] == ((1, 2, 0, 16), (1, 2, 0, 16), (4, 2, 0, 16))
    assert tokens["input_ids"] == ((1, 1), (2, 1), (4, 1))
    assert tokens["attention_mask"] == ((1, 2), (2, 33), (4, 128))


@pytest.mark.parametrize(
    ("how", "words"), [({"takes": False}, "no importer registered"), ({"plan": None}, "its log")]
)
def test_what_tensorrt_does_not_take_fails_with_its_reasons(
    tmp_path: Path, play: Any, how: dict[str, Any], words: str
) -> None:
    play(**how)
    with pytest.raises(JobError, match=words) as caught:
        build(tmp_path, INPUTS, profiles(128))
    assert caught.value.reason == "ENGINE_NOT_BUILT"
    assert not (tmp_path / "model.plan").exists()


def test_without_a_gpu_the_graph_is_left(tmp_path: Path, play: Any) -> None:
    play(gpu=False)
    assert "no GPU" in build(tmp_path, INPUTS, profiles(128))
    assert not (tmp_path / "model.plan").exists()


def test_profiles_have_every_input_of_the_graph(store: Store) -> None:
    artifact, _ = run(store, "tensorrt-fp16")
    inputs = inputs_of(onnx_weights.load(artifact).graph)
    assert len(inputs) == 3 + 2 * 2
    for profile in profiles(1):
        for dims in inputs.values():
            least, usual, most = profile.shapes(dims)
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
    assert Profile((1, 2, 3), (4, 5, 6), (0, 1, 2)).shapes(("total", 7))[2] == (8, 7)
    assert (artifact / ENGINE_FILE).exists()
