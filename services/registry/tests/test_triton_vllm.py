"""Files for the vLLM backend, held against what vLLM and Triton's backend take."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry import render as command
from millrace_registry.triton_vllm import (
    Adapters,
    VllmModel,
    arguments_schema,
    check_arguments,
    config,
    render,
)

ENGINE_ARGS = Path(__file__).parent / "data" / "vllm-0.11.0-engine-args.txt"
ADAPTERS = Adapters({"legal": "/lora/legal", "code": "/lora/code"}, largest_rank=12)


def model(**changed: Any) -> VllmModel:
    given = {"name": "acme.demo", "artifacts": {3: "/a/3", 4: "/a/4"}, "context_tokens": 4096}
    return VllmModel(**{**given, **changed})


def test_every_version_has_its_arguments() -> None:
    files = render(model())
    assert set(files) == {
        "acme.demo/config.pbtxt",
        "acme.demo/3/model.json",
        "acme.demo/4/model.json",
    }
    told = json.loads(files["acme.demo/4/model.json"])
    assert (told["model"], told["max_model_len"]) == ("/a/4", 4096)
    assert told["trust_remote_code"] is False


def test_the_configuration_reads_back_and_is_complete() -> None:
    made = text_format.Parse(render(model())["acme.demo/config.pbtxt"], pb.ModelConfig())
    assert made == config(model())
    assert (made.backend, made.max_batch_size) == ("vllm", 0)
    assert made.model_transaction_policy.decoupled, "the backend asserts it"
    assert [group.kind for group in made.instance_group] == [pb.ModelInstanceGroup.KIND_MODEL]
    assert list(made.version_policy.specific.versions) == [3, 4]
    assert [tensor.name for tensor in made.input if not tensor.optional] == ["text_input"]


def test_the_schema_knows_only_what_vllm_does() -> None:
    known = set(ENGINE_ARGS.read_text().split())
    assert set(arguments_schema()["properties"]) <= known


def test_adapters_of_one_base_are_told_by_name() -> None:
    files = render(model(adapters={4: ADAPTERS}))
    assert "acme.demo/3/multi_lora.json" not in files
    assert json.loads(files["acme.demo/4/multi_lora.json"]) == ADAPTERS.folders
    told = json.loads(files["acme.demo/4/model.json"])
    assert (told["enable_lora"], told["max_lora_rank"]) == (True, 16)
    assert "enable_lora" not in json.loads(files["acme.demo/3/model.json"])


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("gpu_memory_utilization", {"gpu_memory_share": 1.5}),
        ("tensor_parallel_size", {"tensor_parallel": 0}),
        ("max_model_len", {"context_tokens": 0}),
        ("dtype", {"dtype": "int3"}),
        ("quantization", {"quantization": "made-up"}),
        ("max_lora_rank", {"adapters": {3: Adapters({"x": "/x"}, largest_rank=900)}}),
    ],
)
def test_what_vllm_would_not_take_is_named(name: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=name):
        render(model(**changed))


@pytest.mark.parametrize("wrong", [{"made_up": 1}, {"trust_remote_code": True}, {"max_loras": 2}])
def test_the_schema_refuses(wrong: dict[str, Any]) -> None:
    check_arguments({"model": "/a"})
    with pytest.raises(ValueError, match=next(iter(wrong))):
        check_arguments({"model": "/a", **wrong})
    with pytest.raises(ValueError, match="'model' is a required property"):
        check_arguments({})


def test_the_command_writes_a_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, name, document in (
        ("artifact", "config.json", {"max_position_embeddings": 256}),
        ("legal", "adapter_config.json", {"r": 32}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(json.dumps(document))
    (tmp_path / "artifact" / "model.safetensors").touch()
    asked = ["vllm", "--name", "demo", "--version", "1", "--output", str(tmp_path / "models")]
    asked += ["--artifact", str(tmp_path / "artifact"), "--adapter", f"legal={tmp_path / 'legal'}"]
    assert command.main(asked) == 0
    told = json.loads((tmp_path / "models/demo/1/model.json").read_text())
    assert (told["max_model_len"], told["max_lora_rank"]) == (256, 32)
    assert (tmp_path / "models/demo/config.pbtxt").exists()
    assert command.main([*asked, "--gpu-memory-share", "3"]) == 1
    assert "gpu_memory_utilization" in capsys.readouterr().err
    (tmp_path / "artifact" / "model.safetensors").unlink()
    assert command.main(asked) == 1
    assert "no weights" in capsys.readouterr().err


def test_a_quantised_artifact_is_told_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    shape = {"max_position_embeddings": 256, "quantization_config": said}
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.safetensors").touch()
    (artifact / "config.json").write_text(json.dumps(shape))
    asked = ["vllm", "--name", "demo", "--version", "1", "--output", str(tmp_path / "models")]
    asked += ["--artifact", str(artifact)]
    assert command.main(asked) == 0
    told = json.loads((tmp_path / "models/demo/1/model.json").read_text())
    assert told["quantization"] == "compressed-tensors"
    assert (told["dtype"], told["model"]) == ("auto", str(artifact))
    said["quant_method"] = "made-up"
    (artifact / "config.json").write_text(json.dumps(shape))
    assert command.main(asked) == 1
    assert "quantization" in capsys.readouterr().err
