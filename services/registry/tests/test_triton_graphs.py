"""Configurations for graphs that have their cache outside, held against what the compressor
exports."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry import render as command
from millrace_registry import triton_onnxruntime, triton_tensorrt_plan
from millrace_registry.triton_onnxruntime import CausalShape, OnnxModel
from millrace_registry.triton_tensorrt_plan import PlanModel

# Each tensor of an exported model of this shape: direction, name, type, dimensions.
EXPORTED = Path(__file__).parent / "data" / "onnx-tensors.txt"
CONFIG = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "vocab_size": 320,
}
SHAPE = CausalShape.of(CONFIG)
TYPES = {"float32": pb.TYPE_FP32, "int64": pb.TYPE_INT64}


def onnx(**changed: Any) -> OnnxModel:
    return OnnxModel(**{"name": "acme.demo", "versions": (3, 4), "shape": SHAPE, **changed})


def plan(**changed: Any) -> PlanModel:
    shape = CausalShape.of(CONFIG, "float16")
    return PlanModel(**{"name": "acme.demo", "versions": (3,), "shape": shape, **changed})


def exported(direction: str) -> dict[str, tuple[int, list[int]]]:
    """Of the graph, without its batch; what varies is -1, as Triton has it."""
    found = {}
    for line in EXPORTED.read_text().splitlines():
        kind, name, dtype, *dims = line.split()
        if kind == direction:
            shape = [int(dim) if dim.isdecimal() else -1 for dim in dims[1:]]
            found[name] = (TYPES[dtype], shape)
    return found


def test_the_tensors_are_those_of_the_exported_graph() -> None:
    made = triton_onnxruntime.config(onnx())
    inputs = {port.name: (port.data_type, list(port.dims)) for port in made.input}
    outputs = {port.name: (port.data_type, list(port.dims)) for port in made.output}
    assert inputs == exported("input")
    assert outputs == exported("output")


def test_the_configurations_read_back() -> None:
    for render, config, model in (
        (triton_onnxruntime.render, triton_onnxruntime.config, onnx()),
        (triton_tensorrt_plan.render, triton_tensorrt_plan.config, plan()),
    ):
        files = render(model)
        assert list(files) == ["acme.demo/config.pbtxt"]
        assert text_format.Parse(files["acme.demo/config.pbtxt"], pb.ModelConfig()) == config(model)


def test_onnx_runtime_runs_where_it_is_told() -> None:
    made = triton_onnxruntime.config(onnx(accelerator="openvino", threads=4, instances=2))
    assert (made.backend, made.max_batch_size) == ("onnxruntime", 16)
    assert list(made.version_policy.specific.versions) == [3, 4]
    assert [(g.kind, g.count) for g in made.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 2)]
    assert made.dynamic_batching.max_queue_delay_microseconds == 500
    assert made.parameters["intra_op_thread_count"].string_value == "4"
    accelerators = made.optimization.execution_accelerators
    assert [a.name for a in accelerators.cpu_execution_accelerator] == ["openvino"]
    on_gpu = triton_onnxruntime.config(onnx(on_gpu=True, accelerator="tensorrt"))
    assert on_gpu.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    chosen = on_gpu.optimization.execution_accelerators.gpu_execution_accelerator
    assert [a.name for a in chosen] == ["tensorrt"]


def test_an_engine_has_its_profiles_and_a_cache_of_sixteen_bits() -> None:
    made = triton_tensorrt_plan.config(plan(cuda_graphs=True))
    assert (made.platform, made.default_model_filename) == ("tensorrt_plan", "model.plan")
    assert list(made.instance_group[0].profile) == ["0", "1"]
    assert made.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert made.optimization.cuda.graphs
    types = {port.name: port.data_type for port in (*made.input, *made.output)}
    assert types["past_key_values.1.value"] == types["present.0.key"] == pb.TYPE_FP16
    assert types["logits"] == pb.TYPE_FP32


def test_heads_are_found_where_a_configuration_leaves_them_out() -> None:
    old = {k: v for k, v in CONFIG.items() if k not in ("num_key_value_heads", "head_dim")}
    assert CausalShape.of(old) == CausalShape(2, 4, 16, 320)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("accelerator: must be one of", {"accelerator": "magic"}),
        ("accelerator: tensorrt runs on a gpu", {"accelerator": "tensorrt"}),
        ("accelerator: openvino runs on a cpu", {"accelerator": "openvino", "on_gpu": True}),
        ("instances", {"instances": 0}),
        ("max_batch_size", {"max_batch_size": 0}),
        ("queue_delay_microseconds", {"queue_delay_microseconds": -1}),
        ("dtype", {"shape": CausalShape(1, 1, 1, 1, "int3")}),
        ("head_size", {"shape": CausalShape(1, 1, 0, 1)}),
    ],
)
def test_what_triton_would_not_take_is_named(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        triton_onnxruntime.config(onnx(**changed))


def test_the_command_writes_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, models = tmp_path / "artifact", tmp_path / "models"
    artifact.mkdir()
    (artifact / "config.json").write_text(json.dumps(CONFIG))
    asked = ["--name", "demo", "--version", "1", "--output", str(models)]
    asked += ["--artifact", str(artifact)]
    assert command.main(["onnxruntime", *asked]) == 1
    assert "has no model.onnx" in capsys.readouterr().err
    for name in ("model.onnx", "model.onnx.data"):
        (artifact / name).write_text(name)
    assert command.main(["onnxruntime", *asked, "--threads", "2"]) == 0
    assert (models / "demo/1/model.onnx.data").read_text() == "model.onnx.data"
    assert "onnxruntime" in (models / "demo/config.pbtxt").read_text()
    assert command.main(["tensorrt-plan", *asked]) == 1
    assert "has no model.plan" in capsys.readouterr().err
    (artifact / "model.plan").write_text("engine")
    assert command.main(["tensorrt-plan", *asked]) == 0
    assert (models / "demo/1/model.plan").read_text() == "engine"
    assert command.main(["tensorrt-plan", *asked, "--cache-dtype", "int3"]) == 1
    assert "dtype" in capsys.readouterr().err
