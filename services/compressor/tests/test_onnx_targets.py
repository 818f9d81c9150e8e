"""ONNX for ONNX Runtime: the export against transformers, and the artifacts as jobs make them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_compress import TEXT, Store, tokenizer
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from millrace_compressor.jobs import onnx_export, onnx_rows, onnx_weights
from millrace_compressor.jobs.onnx_model import OnnxRuntime, needs_reduced_range
from millrace_compressor.jobs.onnx_session import Artifact
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

pytestmark = pytest.mark.filterwarnings("ignore")
SAME = 2e-5  # of logits about 1 in size, in float32


def with_training_data(folder: Path) -> Store:
    """A store whose evaluation folder has what activations are calibrated on, too."""
    made = Store(folder)
    ids = np.array(tokenizer()(TEXT)["input_ids"], np.uint16)
    temporary = manifest.temporary_sibling(folder / "data")
    np.save(temporary / "heldout-00000.npy", ids[:600])
    np.save(temporary / "train-00000.npy", ids[600:3000])
    made.evaluation_digest = manifest.commit(temporary, folder / "data", "evaluation", {})
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return with_training_data(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store: Store) -> Any:
    folder = store.folder / "checkpoint" / "model"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def exported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    onnx_export.save(onnx_export.export(store.folder / "checkpoint" / "model", folder), folder)
    return folder


def run(store: Store, target: str) -> tuple[Path, dict[str, Any]]:
    spec = store.spec(target, evaluation_path=store.folder / "data")
    result = store.run(spec)
    manifest.verify(Path(result["artifact_path"]), result["artifact_digest"])
    return Path(result["artifact_path"]), result["measurements"]


@pytest.mark.parametrize(("rows", "past", "length"), [(1, 0, 7), (2, 3, 5), (3, 0, 1), (2, 9, 1)])
def test_the_export_says_what_transformers_says(
    exported: Path, model: Any, rows: int, past: int, length: int
) -> None:
    torch.manual_seed(past)
    cache = [torch.randn(rows, 2, past, 16) for _ in range(4)]
    ids = torch.randint(0, 320, (rows, length))
    mask = torch.ones(rows, past + length, dtype=torch.int64)
    mask[0, : (past + length) // 2] = 0  # padded on the left
    positions = torch.arange(past, past + length).repeat(rows, 1)
    with torch.inference_mode():
        expected = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(list(zip(cache[::2], cache[1::2], strict=True))),
        )
    session = onnxruntime.InferenceSession(exported / onnx_export.MODEL_FILE)
    names = [port.name for port in session.get_inputs()]
    given = dict(zip(names, (ids, mask, positions, *cache), strict=True))
    told = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
    assert np.abs(told[0] - expected.logits.numpy())[mask[:, past:].bool().numpy()].max() < SAME
    present = expected.past_key_values.layers[1].values.numpy()
    assert told[-1].shape == present.shape == (rows, 2, past + length, 16)
    np.testing.assert_allclose(told[-1][1:], present[1:], atol=SAME)


def test_one_by_one_is_as_all_at_once(exported: Path) -> None:
    artifact = Artifact(exported, 1, "float32")
    ids = np.arange(12, dtype=np.int64).reshape(2, 6)
    whole, cache, parts = artifact.logits(ids), artifact.empty_cache(2), []
    for at in range(6):
        logits, cache = artifact.step(ids[:, at : at + 1], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=SAME)


@pytest.mark.parametrize("target", ["onnx-int8", "onnx-int8-dynamic"])
def test_eight_bits_are_small_and_close(store: Store, target: str) -> None:
    artifact, measured = run(store, target)
    assert measured["weight_shares"] == {"int8": 1.0}
    assert measured["artifact_perplexity"] == pytest.approx(
        measured["original_perplexity"], rel=0.02
    )
    assert 0 < measured["kl_divergence"] < 0.01
    assert measured["first_token_seconds"] > 0 and measured["token_seconds"] > 0
    weights = (artifact / onnx_export.WEIGHTS_FILE).stat().st_size
    assert weights < 0.5 * measured["original_size_bytes"]
    for name in ("config.json", "tokenizer.json"):
        original = store.folder / "checkpoint" / "model" / name
        assert (artifact / name).read_bytes() == original.read_bytes()
    onnx.checker.check_model(str(artifact / onnx_export.MODEL_FILE))


def test_only_the_static_one_knows_its_activations(store: Store) -> None:
    kinds = {}
    for target in ("onnx-int8", "onnx-int8-dynamic"):
        artifact, _ = run(store, target)
        kinds[target] = {node.op_type for node in onnx_weights.load(artifact).graph.node}
    assert "QuantizeLinear" in kinds["onnx-int8"]
    assert "DynamicQuantizeLinear" not in kinds["onnx-int8"]
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds["onnx-int8-dynamic"]
    dynamic, _ = run(store, "onnx-int8-dynamic")
    with pytest.raises(JobError, match=r"activations of .* are not quantised"):
        OnnxRuntime("onnx-int8").inspect(dynamic)


def test_what_is_not_quantised_is_found(exported: Path) -> None:
    with pytest.raises(JobError, match="only 0% of the weights") as caught:
        OnnxRuntime("onnx-int8-dynamic").inspect(exported)
    assert caught.value.reason == "QUANTIZATION_SKIPPED"


def test_what_transformers_cannot_load_is_the_checkpoints_fault(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(JobError) as caught:
        onnx_export.export(tmp_path / "model", tmp_path / "out")
    assert caught.value.reason == "CHECKPOINT_INVALID"


def test_rows_of_a_table_are_rounded_each_by_itself() -> None:
    table = np.array([[1000.0, -10.0], [0.001, 0.0005], [0.0, 0.0]], np.float32)
    rows, scales = onnx_rows.rounded_rows(table)
    assert rows.dtype == np.int8
    np.testing.assert_allclose(rows * scales[:, None], table, atol=1000 / 254, rtol=0)
    np.testing.assert_allclose((rows * scales[:, None])[1], table[1], rtol=0.01)


@pytest.mark.parametrize(
    ("machine", "flags", "needs"),
    [
        ("x86_64", "sse2 avx2 avx512_vnni", False),
        ("x86_64", "sse2 avx2 avx_vnni", False),
        ("x86_64", "sse2 avx2", True),
        ("aarch64", "asimd", False),
    ],
)
def test_weights_have_seven_bits_only_where_sums_saturate(
    tmp_path: Path, machine: str, flags: str, needs: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert needs_reduced_range(machine, tmp_path / "cpuinfo") is needs
    assert needs_reduced_range("x86_64", tmp_path / "absent")
