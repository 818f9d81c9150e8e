"""Triton's folder: whole versions, unchanged while they run; and what is read from an artifact."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.domain import Interface, QueuePolicy, Serving
from millrace_registry.repository import ModelRepository, is_engine_folder, read_interface
from millrace_registry.triton_config import EngineSettings


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    tokenizer = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": {"content": "<pad>"},
        "unk_token": None,
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": "old",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def repository(root: Path) -> ModelRepository:
    return ModelRepository(root, EngineSettings())


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and bytes of every file: what Triton would notice a change of."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_a_version_is_written_once_and_then_left_alone(
    repository: ModelRepository, root: Path, artifact: Path
) -> None:
    repository.add_version("acme.demo", 1, artifact)
    folder = root / "acme.demo/1"
    assert (folder / "artifact").resolve() == artifact
    before, written = state(folder), folder.stat().st_mtime_ns
    repository.add_version("acme.demo", 1, artifact)
    repository.add_version("acme.demo", 2, artifact)
    repository.list_versions("acme.demo", [1, 2])
    assert (state(folder), folder.stat().st_mtime_ns) == (before, written)
    assert repository.versions("acme.demo") == [1, 2]


@pytest.mark.parametrize("name", ["model.py", "sampling.py", "__pycache__", "artifact", "added.py"])
def test_a_version_that_was_tampered_with_is_written_again(
    repository: ModelRepository, root: Path, artifact: Path, name: str
) -> None:
    repository.add_version("acme.demo", 1, artifact)
    folder = root / "acme.demo/1"
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(b"import os")
    repository.add_version("acme.demo", 1, artifact)
    assert is_engine_folder(folder, artifact)
    assert (folder / "artifact").resolve() == artifact


def test_a_half_written_version_is_written_again(
    repository: ModelRepository, root: Path, artifact: Path
) -> None:
    folder = root / "acme.demo/1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("half")
    left = root / ".tmp-acme.demo-1"
    left.mkdir()
    repository.add_version("acme.demo", 1, artifact)
    assert "TritonPythonModel" in (folder / "model.py").read_text()
    assert not left.exists()


def test_the_list_of_versions_is_rewritten_only_when_it_changes(
    repository: ModelRepository, artifact: Path
) -> None:
    repository.add_version("acme.demo", 1, artifact)
    assert repository.models() == []
    assert repository.list_versions("acme.demo", [1])
    assert not repository.list_versions("acme.demo", [1])
    assert repository.list_versions("acme.demo", [2, 1])
    assert not repository.list_versions("acme.demo", [1, 2])
    assert repository.models() == ["acme.demo"]


def test_the_configuration_is_rewritten_when_the_model_is_to_be_run_otherwise(
    repository: ModelRepository, root: Path, artifact: Path
) -> None:
    repository.add_version("acme.demo", 1, artifact)
    wide = Serving(instance_count=2, max_batch_size=8)
    assert repository.list_versions("acme.demo", [1])
    assert repository.list_versions("acme.demo", [1], wide)
    assert not repository.list_versions("acme.demo", [1], wide)
    config = text_format.Parse((root / "acme.demo/config.pbtxt").read_text(), pb.ModelConfig())
    assert config.instance_group[0].count == 2
    # What the gateway alone acts on loads nothing again.
    patient = replace(wide, queue_policy=QueuePolicy(max_queue_size=1))
    assert repository.is_listed("acme.demo", [1], patient)
    assert repository.list_versions("acme.demo", [1])


def test_removing_a_version_keeps_its_artifact(
    repository: ModelRepository, root: Path, artifact: Path
) -> None:
    repository.add_version("acme.demo", 1, artifact)
    repository.remove_version("acme.demo", 1)
    repository.remove_version("acme.demo", 1)
    assert repository.versions("acme.demo") == []
    assert (artifact / "config.json").exists()
    repository.remove_model("acme.demo")
    assert list(root.iterdir()) == []


def test_the_interface_is_read_from_the_artifact(artifact: Path) -> None:
    others = {"pad_token": "<pad>", "image_token": "<image>"}
    assert read_interface(artifact) == Interface(256, "old", "<s>", "</s>", others)
    (artifact / "chat_template.jinja").write_text("{{ messages }}\n")
    assert read_interface(artifact).chat_template == "{{ messages }}\n"


@pytest.mark.parametrize("broken", ["config.json", "tokenizer_config.json"])
def test_an_artifact_without_its_files_is_refused(artifact: Path, broken: str) -> None:
    (artifact / broken).unlink()
    with pytest.raises(OSError, match=broken):
        read_interface(artifact)


def test_an_artifact_of_another_kind_of_model_is_refused(artifact: Path) -> None:
    (artifact / "config.json").write_text(json.dumps({"image_size": 224}))
    with pytest.raises(KeyError, match="max_position_embeddings"):
        read_interface(artifact)
