"""The targets of OpenVINO and their parts, on the tiny model: each artifact is made and run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from compressor_threads import in_own_thread
from safetensors.torch import load_file
from test_compress import Store, greedy

from millrace_compressor.jobs import openvino_bits, openvino_layers, sensitivity
from millrace_compressor.jobs.format import Recipe, Tokens
from millrace_compressor.jobs.graphs import MODEL_FILE
from millrace_compressor.jobs.openvino_ir import LAYERS_FILE, OpenvinoIr
from millrace_compressor.jobs.rounded import Rounded
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
GPTQ = "WEIGHT_METHOD_GPTQ"
ROUNDED = "WEIGHT_METHOD_ROUND_TO_NEAREST"
KEPT = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def made(store: Store, target: str, **recipe: Any) -> tuple[Path, dict[str, Any]]:
    """The artifact and its measurements; the same one for the same recipe."""
    name = manifest.sha256_bytes(json.dumps([target, recipe]).encode())[-12:]
    spec = store.spec(target, recipe=recipe, artifact_path=store.folder / name)
    result = store.run(spec)
    manifest.verify(Path(result["artifact_path"]), result["artifact_digest"])
    return Path(result["artifact_path"]), result["measurements"]


def layers_of(artifact: Path) -> dict[str, openvino_layers.Layer]:
    model = openvino.Core().read_model(artifact / MODEL_FILE)
    return {layer.name: layer for layer in openvino_layers.layers(model)}


def cache_bytes(artifact: Path) -> int:
    """Of as many blocks as all models get here, in the pipeline that serves."""

    def measure() -> int:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = 64
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(artifact), scheduler, "CPU", {})
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 2
        pipeline.add_request(0, openvino.Tensor(np.array([[5, 6, 7]])), config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return int(pipeline.get_metrics().kv_cache_size_in_bytes)

    return in_own_thread(measure)


def products_in_8_bits(artifact: Path) -> int:
    """How many products the CPU plugin itself multiplies in 8 bits."""

    def count() -> int:
        compiled = openvino.Core().compile_model(artifact / MODEL_FILE, "CPU", {})
        told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        kinds = [
            info["primitiveType"].astype(str).lower()
            for info in told
            if info["layerType"].astype(str) == "FullyConnected"
        ]
        return sum(kind.endswith("i8") for kind in kinds)

    return in_own_thread(count)


def test_activations_in_8_bits_are_calibrated_multiplied_and_served(store: Store) -> None:
    artifact, measured = made(store, "openvino-int8-activations")
    assert measured["weight_shares"]["int8"] > 0.9
    assert measured["kl_divergence"] < 0.01
    assert measured["calibration"]["windows"] > 0
    layers = layers_of(artifact)
    assert len(layers) == 14
    assert all(layer.is_fed_in_8_bits for layer in layers.values())
    plain, _ = made(store, "openvino-int8")
    assert products_in_8_bits(artifact) == 14
    assert products_in_8_bits(plain) == 0
    assert len(in_own_thread(lambda: greedy(artifact, "import os\n", 8))) == 8


@pytest.mark.parametrize("method", [ROUNDED, GPTQ, None])
def test_4_bits_are_smaller_still_and_served(store: Store, method: str | None) -> None:
    recipe = {} if method is None else {"weight_method": method}
    artifact, measured = made(store, "openvino-int4", **recipe)
    shares = measured["weight_shares"]
    weights = sum(layer.elements for layer in layers_of(artifact).values())
    embedding = 320 * 64
    assert shares["int4"] == pytest.approx(weights / (weights + embedding), rel=0.02)
    assert shares["int8"] == pytest.approx(embedding / (weights + embedding), rel=0.02)
    assert measured["artifact_size_bytes"] < 0.3 * measured["original_size_bytes"]
    assert measured["kl_divergence"] < 0.05
    # What is rounded to the nearest looks at no data.
    assert ("calibration" in measured) == (method != ROUNDED)
    assert len(in_own_thread(lambda: greedy(artifact, "import os\n", 8))) == 8
    told = json.loads((artifact / LAYERS_FILE).read_text())
    assert told["weight_method"] == (method or openvino_bits.METHOD)
    assert (told["group_size"][KEPT], told["group_size"]["model.layers.0.mlp.up_proj"]) == (32, 64)


def test_a_group_size_that_was_asked_for_must_fit(store: Store) -> None:
    artifact, _ = made(store, "openvino-int4", weight_method=ROUNDED, group_size=16)
    assert {layer.group_size for layer in layers_of(artifact).values()} == {16}
    with pytest.raises(JobError) as caught:
        made(store, "openvino-int4", weight_method=ROUNDED, group_size=64)
    assert caught.value.reason == "GROUP_SIZE_INVALID"


def test_layers_may_keep_8_bits(store: Store) -> None:
    recipe = {"weight_method": ROUNDED, "layer_bits": {KEPT: 8}}
    artifact, _ = made(store, "openvino-int4", **recipe)
    precisions = {name: layer.precision for name, layer in layers_of(artifact).items()}
    assert precisions.pop(KEPT) == "int8"
    assert set(precisions.values()) == {"int4"}
    with pytest.raises(JobError) as caught:
        made(store, "openvino-int4", weight_method=ROUNDED, layer_bits={"model.nothing": 8})
    assert caught.value.reason == "LAYER_UNKNOWN"


def test_what_was_not_quantised_is_found(store: Store, tmp_path: Path) -> None:
    kept, _ = made(store, "openvino-int4", weight_method=ROUNDED, layer_bits={KEPT: 8})
    all_in_4 = tmp_path / "int4"
    shutil.copytree(kept, all_in_4)
    told = json.loads((all_in_4 / LAYERS_FILE).read_text())
    told["bits"][KEPT] = 4
    (all_in_4 / LAYERS_FILE).write_text(json.dumps(told))
    int8, _ = made(store, "openvino-int8")
    for target, artifact in (
        ("openvino-int4", all_in_4),
        ("openvino-int4", int8),
        ("openvino-int8-activations", int8),
    ):
        with pytest.raises(JobError) as caught:
            OpenvinoIr(target).inspect(artifact)
        assert caught.value.reason == "QUANTIZATION_SKIPPED"


def test_a_cache_in_8_bits_is_the_servers_too(store: Store) -> None:
    plain, _ = made(store, "openvino-fp32")
    small, _ = made(store, "openvino-fp32", kv_cache_int8=True)
    assert cache_bytes(small) < 0.8 * cache_bytes(plain)
    model = openvino.Core().read_model(small / MODEL_FILE)
    served = in_own_thread(
        lambda: openvino.Core().compile_model(model, "CPU").get_property("KV_CACHE_PRECISION")
    )
    assert served == openvino.Type.u8  # as the job's own measurement compiles it


def test_bfloat16_is_half_and_says_so(store: Store) -> None:
    artifact, measured = made(store, "safetensors-bf16")
    assert measured["weight_shares"] == {"bfloat16": 1.0}
    assert measured["artifact_size_bytes"] < 0.52 * measured["original_size_bytes"]
    assert 0 <= measured["kl_divergence"] < 0.01
    assert json.loads((artifact / "config.json").read_text())["dtype"] == "bfloat16"
    original = load_file(store.folder / "checkpoint/model/model.safetensors")
    found = load_file(artifact / "model.safetensors")
    assert set(found) == set(original)
    assert all(torch.equal(found[name], original[name].bfloat16()) for name in found)
    assert Rounded().exact(artifact, 1).dtype == "bfloat16"
    plain, _ = made(store, "safetensors")
    with pytest.raises(JobError, match="float32, not in bfloat16"):
        Rounded().inspect(plain)


def windows(store: Store) -> Tokens:
    shard = np.load(store.folder / "evaluation/train-00000.npy")[: 4 * 64]
    return shard.reshape(4, 64).astype(np.int64)


def test_sensitivity_is_of_each_layer_and_leaves_the_model_alone(store: Store) -> None:
    model = store.folder / "checkpoint/model"
    found = sensitivity.sensitivity(model, windows(store))
    artifact, _ = made(store, "openvino-int8")
    assert set(found) == set(sensitivity.layer_inputs(model)) == set(layers_of(artifact))
    assert all(0 < divergence < 0.1 for divergence in found.values())
    again = sensitivity.sensitivity(model, windows(store))
    assert again == pytest.approx(found)
    coarser = sensitivity.sensitivity(model, windows(store), group_size=64)
    assert coarser == pytest.approx(found)
    finer = sensitivity.sensitivity(model, windows(store), group_size=8)
    assert sum(finer.values()) < sum(found.values())


def test_rounding_to_4_bits_keeps_extremes_and_zero() -> None:
    weights = torch.tensor([[-1.0, 0.0, 0.26, 2.0] * 4])
    found = sensitivity.round_to_4_bits(weights, 16)
    assert found.unique().tolist() == pytest.approx([-1.0, 0.0, 0.2, 2.0])
    assert [sensitivity.fitting_group_size(n, 64) for n in (128, 96, 100)] == [64, 32, 100]


def test_bits_of_layers_are_4_or_8() -> None:
    with pytest.raises(ValueError, match="layer_bits"):
        Recipe.model_validate({"layer_bits": {KEPT: 5}})
