"""compressed-tensors: the whole job for each target, and our reading of it against the library's.

llm-compressor and compressed-tensors are in an environment of their own, which ``make test``
makes (deploy/local/llm_compressor.sh); what needs them is skipped without it.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_compress import Store

from millrace_compressor.jobs import compressed_tensors, llm_compressor
from millrace_compressor.jobs.compressed_tensors import CompressedTensors
from millrace_compressor.jobs.format import Conversion, Recipe
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

PYTHON = Path(
    os.environ.get("MILLRACE_COMPRESSOR_LLM_COMPRESSOR_PYTHON")
    or Path(__file__).parents[3] / ".venv-llm-compressor" / "bin" / "python"
)
installed = pytest.mark.skipif(
    not PYTHON.exists(), reason="deploy/local/llm_compressor.sh has not run"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries say of each other is not ours
W8A8, FP8, W4A16, SPARSE = (
    f"compressed-tensors-{name}" for name in ("w8a8", "fp8", "w4a16", "sparse-2-4")
)
CALIBRATION = {"source": "CALIBRATION_SOURCE_GENERIC", "samples": 8}
RECIPES: dict[str, dict[str, Any]] = {
    W8A8: {"calibration": CALIBRATION},
    FP8: {},
    W4A16: {"calibration": CALIBRATION, "weight_method": "WEIGHT_METHOD_AWQ", "group_size": 16},
    SPARSE: {"calibration": CALIBRATION},
}
# The library's own reading: logits of every artifact, on the same windows.
REFERENCE = """
import sys
import numpy, torch
from transformers import AutoModelForCausalLM
ids = torch.from_numpy(numpy.load(sys.argv[1]))
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    with torch.inference_mode():
        numpy.save(folder + ".npy", model(input_ids=ids).logits.numpy())
"""


class Made:
    """A store, and the results of the jobs that ran in it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._results: dict[str, dict[str, Any]] = {}

    def result(self, target: str) -> dict[str, Any]:
        if target not in self._results:
            recipe = RECIPES[target]
            spec = self.store.spec(target, recipe=recipe, llm_compressor_python=PYTHON)
            self._results[target] = self.store.run(spec)
        return self._results[target]

    def artifact(self, target: str) -> Path:
        return Path(self.result(target)["artifact_path"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(Store(tmp_path_factory.mktemp("store")))


@installed
@pytest.mark.parametrize(
    ("target", "precision", "divergence", "ratio"),
    [
        (W8A8, "int8", 1e-4, 0.5),
        (FP8, "float8_e4m3", 1e-3, 0.5),
        (W4A16, "int4", 1e-3, 0.45),
        (SPARSE, "float32 2:4", 0.05, 1.01),
    ],
)
def test_the_job_makes_what_the_target_says(
    made: Made, target: str, precision: str, divergence: float, ratio: float
) -> None:
    result, artifact = made.result(target), made.artifact(target)
    measured = result["measurements"]
    assert measured["weight_shares"][precision] == pytest.approx(0.746, abs=0.001)
    assert 0 < measured["kl_divergence"] < divergence
    assert measured["artifact_size_bytes"] < ratio * measured["original_size_bytes"]
    assert measured["runtime"] == "transformers" and measured["first_token_seconds"] > 0
    manifest.verify(artifact, result["artifact_digest"])
    model = made.store.folder / "checkpoint" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (artifact / name).read_bytes() == (model / name).read_bytes()
    assert {path.suffix for path in artifact.iterdir()} <= {".json", ".safetensors"}
    for path in artifact.glob("*.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, "Triton's user reads it"


@installed
def test_it_answers_as_the_librarys_own_reading_does(made: Made, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, (2, 48))
    np.save(tmp_path / "ids.npy", ids)
    folders = []
    for target in RECIPES:
        folders.append(str(tmp_path / target))
        shutil.copytree(made.artifact(target), folders[-1])
    (tmp_path / "reference.py").write_text(REFERENCE)
    command = [PYTHON, "-I", tmp_path / "reference.py", tmp_path / "ids.npy", *folders]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    for target, folder in zip(RECIPES, folders, strict=True):
        ours = CompressedTensors(target).open(Path(folder), 1).logits(ids)
        assert np.abs(ours - np.load(f"{folder}.npy")).max() < 1e-5, target


@installed
def test_what_vllm_is_told_of_an_artifact(made: Made) -> None:
    said = {
        target: json.loads((made.artifact(target) / "config.json").read_text()).get(
            "quantization_config"
        )
        for target in RECIPES
    }
    for target, form in ((W8A8, "int-quantized"), (FP8, "float-quantized")):
        assert said[target]["format"] == form
        (group,) = said[target]["config_groups"].values()
        assert group["input_activations"]["dynamic"] is True
        assert group["input_activations"]["strategy"] == "token"
    (group,) = said[W4A16]["config_groups"].values()
    assert (group["weights"]["group_size"], group["input_activations"]) == (16, None)
    assert all(said[target]["ignore"] == ["lm_head"] for target in (W8A8, FP8, W4A16))
    assert all(said[target]["quant_method"] == "compressed-tensors" for target in (W8A8, FP8))
    assert said[SPARSE] is None, "vLLM refuses sparsity that it has no kernels for"


@installed
def test_a_layer_that_is_not_what_the_target_says_is_named(made: Made, tmp_path: Path) -> None:
    for target, name in ((W8A8, "quantised"), (SPARSE, "dense")):
        folder = tmp_path / target
        shutil.copytree(made.artifact(target), folder)
        tensors = load_file(folder / "model.safetensors")
        layer = "model.layers.1.mlp.up_proj.weight"
        tensors[layer] = torch.ones_like(tensors[layer], dtype=torch.float32)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(JobError, match=r"model\.layers\.1\.mlp\.up_proj") as caught:
            CompressedTensors(target).inspect(folder)
        assert caught.value.reason == "QUANTIZATION_SKIPPED", name


@installed
def test_one_target_is_not_another(made: Made) -> None:
    for target in (W8A8, W4A16):
        with pytest.raises(JobError, match="float-quantized") as caught:
            CompressedTensors(FP8).inspect(made.artifact(target))
        assert caught.value.reason == "QUANTIZATION_SKIPPED"


def conversion(python: Path, **recipe: Any) -> Conversion:
    return Conversion(
        model=Path("/nowhere"),
        target=W4A16,
        recipe=Recipe.model_validate(recipe),
        calibration=lambda: np.zeros((1, 4), np.int64),
        threads=1,
        llm_compressor_python=python,
    )


def failure(folder: Path, given: Conversion) -> JobError:
    with pytest.raises(JobError) as caught:
        CompressedTensors(W4A16).convert(given, folder / "made")
    return caught.value


def played(folder: Path, script: str) -> Path:
    """An interpreter that is played."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


def test_without_its_environment_it_says_what_to_run(tmp_path: Path) -> None:
    error = failure(tmp_path, conversion(tmp_path / "python"))
    assert error.reason == "LLM_COMPRESSOR_MISSING"
    assert "deploy/local/llm_compressor.sh" in str(error)
    assert "MILLRACE_COMPRESSOR_LLM_COMPRESSOR_PYTHON" in str(error)


def test_what_the_other_process_says_is_the_jobs_word(tmp_path: Path) -> None:
    said = json.dumps({"reason": "RECIPE_INVALID", "message": "groups of 48"})
    python = played(tmp_path, f"echo noise; echo '{said}'; exit 1")
    error = failure(tmp_path, conversion(python))
    assert (error.reason, str(error)) == ("RECIPE_INVALID", "groups of 48")
    with pytest.raises(RuntimeError, match="status 3"):
        CompressedTensors(W4A16).convert(conversion(played(tmp_path, "exit 3")), tmp_path / "made")
    with pytest.raises(RuntimeError, match="status 1"):
        CompressedTensors(W4A16).convert(conversion(played(tmp_path, "exit 1")), tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"python"}


def test_a_method_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    given = conversion(played(tmp_path, "exit 3"), weight_method="WEIGHT_METHOD_SCALE_ESTIMATION")
    assert failure(tmp_path, given).reason == "RECIPE_INVALID"


@pytest.mark.parametrize(("inputs", "expected"), [((512, 1024), 128), ((64, 96), 32), ((24, 8), 8)])
def test_groups_are_the_largest_that_divide(inputs: tuple[int, ...], expected: int) -> None:
    linears = {f"layer_{number}": count for number, count in enumerate(inputs)}
    assert llm_compressor.group_size(None, linears) == expected
    assert llm_compressor.group_size(8, linears) == 8
    for wanted in (48, None):
        with pytest.raises(llm_compressor.OrderError, match="inputs of odd") as caught:
            llm_compressor.group_size(wanted, {"odd": 500})
        assert caught.value.reason == "RECIPE_INVALID"


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"parent": 1}))
    script = Path(compressed_tensors.__file__).with_name("llm_compressor.py")
    ended = subprocess.run([sys.executable, "-I", script, order], check=False)
    assert ended.returncode == -9
