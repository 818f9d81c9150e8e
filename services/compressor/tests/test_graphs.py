"""Graphs that are used again: the same bytes as an export of its own, or none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressor_threads import in_own_thread
from transformers import Qwen3Config, Qwen3ForCausalLM

from millrace_compressor.jobs import quantize
from millrace_compressor.jobs.graphs import MODEL_FILE, Graphs, key_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TARGETS = ("openvino-int8", "openvino-fp32")


def checkpoint(
    folder: Path, seed: int, *, trained: bool = True, dtype: torch.dtype = torch.float32
) -> Path:
    """Weights that no two tensors share, as after any training; untrained: norms of ones."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG))
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("first"), 1)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, first: Path) -> Graphs:
    """Those of the first checkpoint."""
    kept = Graphs(tmp_path_factory.mktemp("graphs"))
    for target in TARGETS:
        exported = tmp_path_factory.mktemp("exported")
        in_own_thread(lambda o=exported, t=target: quantize.export(first, t, o))
        assert in_own_thread(lambda o=exported, t=target: kept.keep(first, t, o))
    return kept


@pytest.mark.parametrize("target", TARGETS)
def test_a_filled_graph_has_the_bytes_of_an_export(
    graphs: Graphs, tmp_path: Path, target: str
) -> None:
    second = checkpoint(tmp_path / "second", 2)
    in_own_thread(lambda: quantize.export(second, target, tmp_path / "exported"))
    assert in_own_thread(lambda: graphs.fill(second, target, tmp_path / "filled"))
    for name in ("openvino_model.bin", "config.json"):
        made = (tmp_path / "filled" / name).read_bytes()
        assert made == (tmp_path / "exported" / name).read_bytes()


def test_another_shape_another_target_and_other_settings_are_other_graphs(
    first: Path, tmp_path: Path
) -> None:
    keys = {key_of(first, target) for target in TARGETS}
    settings = json.loads((first / "config.json").read_text())
    (checkpoint(tmp_path, 1) / "config.json").write_text(
        json.dumps({**settings, "rope_theta": 5.0})
    )
    assert len({*keys, key_of(tmp_path, TARGETS[0])}) == 3


def test_a_graph_that_lost_a_tensor_is_not_kept(tmp_path: Path) -> None:
    """Multiplying by ones is left out of a graph; a later checkpoint would miss its norms."""
    untrained = checkpoint(tmp_path / "untrained", 3, trained=False)
    graphs = Graphs(tmp_path / "graphs")

    def export_and_keep() -> bool:
        quantize.export(untrained, TARGETS[1], tmp_path / "exported")
        return graphs.keep(untrained, TARGETS[1], tmp_path / "exported")

    assert not in_own_thread(export_and_keep)
    assert not graphs.fill(untrained, TARGETS[1], tmp_path / "filled")


@pytest.mark.parametrize(
    "damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink]
)
def test_a_damaged_graph_is_not_used(
    first: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    graphs = Graphs(tmp_path / "graphs")
    in_own_thread(lambda: quantize.export(first, TARGETS[1], tmp_path / "exported"))
    assert in_own_thread(lambda: graphs.keep(first, TARGETS[1], tmp_path / "exported"))
    damage(tmp_path / "graphs" / key_of(first, TARGETS[1]) / MODEL_FILE)
    assert not graphs.fill(first, TARGETS[1], tmp_path / "filled")


def test_of_checkpoints_in_16_bits_too(tmp_path: Path) -> None:
    """As training leaves them."""
    first, second = (
        checkpoint(tmp_path / name, seed, dtype=torch.bfloat16)
        for name, seed in (("first", 1), ("second", 2))
    )
    graphs = Graphs(tmp_path / "graphs")

    def both() -> bool:
        quantize.export(first, TARGETS[0], tmp_path / "kept")
        quantize.export(second, TARGETS[0], tmp_path / "exported")
        kept = graphs.keep(first, TARGETS[0], tmp_path / "kept")
        return kept and graphs.fill(second, TARGETS[0], tmp_path / "filled")

    assert in_own_thread(both)
    name = "openvino_model.bin"
    assert (tmp_path / "filled" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()
