"""Which engine an artifact is given, and that its files are all there."""

import ast
import sys
from pathlib import Path

import pytest

from millrace_registry import engines
from millrace_registry.engine import TRANSFORMERS_FILES, engine_of
from millrace_registry.repository import ModelRepository, is_engine_folder
from millrace_registry.triton_config import ENGINE_FILES, EngineSettings

SOURCES = Path(engines.__path__[0])
FROM_TRITON = {"triton_python_backend_utils"}


def artifact_with(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json"])
def test_a_checkpoint_is_served_by_transformers(tmp_path: Path, weights: str) -> None:
    assert engine_of(artifact_with(tmp_path / "a", weights)) == TRANSFORMERS_FILES


@pytest.mark.parametrize(
    "names", [(), ("openvino_model.xml",), ("openvino_model.xml", "model.safetensors")]
)
def test_all_else_is_served_by_openvino(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert engine_of(artifact_with(tmp_path / "a", *names)) == ENGINE_FILES


def test_versions_of_one_model_may_have_different_engines(tmp_path: Path) -> None:
    exported = artifact_with(tmp_path / "exported", "openvino_model.xml")
    checkpoint = artifact_with(tmp_path / "checkpoint", "model.safetensors")
    repository = ModelRepository(tmp_path / "models", EngineSettings())
    for number, artifact in enumerate([exported, checkpoint], start=1):
        repository.add_version("acme.demo", number, artifact)
        assert is_engine_folder(tmp_path / f"models/acme.demo/{number}", artifact)
    written = [tmp_path / f"models/acme.demo/{number}/model.py" for number in (1, 2)]
    assert "openvino" in written[0].read_text()
    assert "openvino_genai as" not in written[1].read_text()


@pytest.mark.parametrize("names", [ENGINE_FILES, TRANSFORMERS_FILES])
def test_an_engine_has_every_file_that_it_imports(names: tuple[str, ...]) -> None:
    ours = {path.stem for path in SOURCES.glob("*.py")}
    for name in names:
        wanted = {module for module in imported(SOURCES / name) if module in ours}
        assert {f"{module}.py" for module in wanted} <= set(names), name
        assert "millrace_registry" not in imported(SOURCES / name)


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - FROM_TRITON - set(sys.stdlib_module_names)
