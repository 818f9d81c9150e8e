"""Configurations for TensorRT-LLM, held against NVIDIA's templates and Triton's rules."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry import render as command
from millrace_registry.triton_tensorrt_llm import STEPS, TensorRtLlmModel, image_files, render

PARAMETERS = Path(__file__).parent / "data" / "tensorrt-llm-0c8de69a1ca6-parameters.txt"


def model(**changed: Any) -> TensorRtLlmModel:
    given = {"name": "acme.demo", "version": 3, "engine_folder": "/e", "tokenizer_folder": "/t"}
    return TensorRtLlmModel(**{**given, **changed})


def configs(**changed: Any) -> dict[str, Any]:
    return {
        path.removesuffix("/config.pbtxt"): text_format.Parse(content, pb.ModelConfig())
        for path, content in render(model(**changed)).items()
        if path.endswith(".pbtxt")
    }


def test_there_are_four_models_and_their_version_folders() -> None:
    assert set(configs()) == {"acme.demo", *(f"acme.demo.{step}" for step in STEPS)}
    for name, made in configs().items():
        assert made.name == name
        assert list(made.version_policy.specific.versions) == [3]
    files = {*render(model()), *image_files(model())}
    assert {f"{path.rsplit('/', 1)[0]}" for path in files if path.count("/") == 2} == {
        f"{name}/3" for name in configs()
    }


def test_the_engines_parameters_are_those_of_the_template() -> None:
    made = configs(gpu_device_ids=(0, 1))["acme.demo.tensorrt_llm"]
    assert set(made.parameters) <= set(PARAMETERS.read_text().split())
    assert (made.backend, made.model_transaction_policy.decoupled) == ("tensorrtllm", True)
    assert made.parameters["gpt_model_path"].string_value == "/e"
    assert made.parameters["gpu_device_ids"].string_value == "0,1"


def test_the_steps_fit_together() -> None:
    """Triton's own checks of an ensemble: every tensor has one source, of the same type."""
    made = configs()
    ensemble = made["acme.demo"]
    sources = {tensor.name: tensor.data_type for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        part = made[step.model_name]
        inputs = {tensor.name: tensor for tensor in part.input}
        for own, source in step.input_map.items():
            assert inputs[own].data_type == sources[source], own
        assert {name for name in inputs if not inputs[name].optional} <= set(step.input_map)
        outputs = {tensor.name: tensor.data_type for tensor in part.output}
        for own, target in step.output_map.items():
            assert target not in sources, "it has two sources"
            sources[target] = outputs[own]
    for tensor in ensemble.output:
        assert sources[tensor.name] == tensor.data_type
    used = {source for s in ensemble.ensemble_scheduling.step for source in s.input_map.values()}
    assert {tensor.name for tensor in ensemble.input} <= used


def test_what_is_optional_for_a_step_stays_optional_for_the_client() -> None:
    required = [tensor.name for tensor in configs()["acme.demo"].input if not tensor.optional]
    assert required == ["text_input", "max_tokens"]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("max_batch_size", {"max_batch_size": 0}),
        ("gpu_memory_share", {"gpu_memory_share": 0.0}),
        ("gpu_device_ids", {"gpu_device_ids": (0, 0)}),
        ("gpu_device_ids", {"gpu_device_ids": (-1,)}),
    ],
)
def test_what_is_out_of_range_is_named(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        render(model(**changed))


def test_the_command_says_what_comes_from_the_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["tensorrt-llm", "--name", "demo", "--version", "1", "--output", str(tmp_path)]
    assert command.main([*asked, "--engine", "/e", "--tokenizer", "/t"]) == 0
    assert (tmp_path / "demo.tensorrt_llm/config.pbtxt").exists()
    said = capsys.readouterr().out
    assert "/app/all_models/inflight_batcher_llm/preprocessing/1/model.py" in said
