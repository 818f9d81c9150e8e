"""Fewer layers, groups and units, on a tiny model that has learned enough to have parts that
matter."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from millrace_compressor.jobs import anatomy, importance, plain, pruning
from millrace_compressor.jobs.anatomy import Size
from millrace_compressor.jobs.format import Conversion, Pruning, Recipe, Tokens
from millrace_runtime.jobs import JobError

VOCABULARY = 64
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


NEXT = np.random.default_rng(0).permutation(VOCABULARY - 2) + 2


def text(count: int, seed: int) -> Tokens:
    """Windows of 24 tokens: two of three follow from the one before, the third is again the one
    three places before, and a twentieth is noise."""
    random = np.random.default_rng(seed)
    ids = random.integers(2, VOCABULARY, (count, 24))
    for place in range(3, 24):
        known = NEXT[ids[:, place - 1] - 2] if place % 3 else ids[:, place - 3]
        ids[:, place] = np.where(random.random(count) < 0.05, ids[:, place], known)
    return ids.astype(np.int64)


def fresh(kind: str = "qwen3") -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)).eval()
    config = Qwen3Config(
        **SHAPE,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models so small are not faster with more, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _learned() -> dict[str, torch.Tensor]:
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(200):
        ids = torch.from_numpy(text(16, step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def trained() -> Any:
    """What has learned the text; each call gives another copy."""
    model = fresh()
    model.load_state_dict(_learned())
    return model


@torch.no_grad()
def loss(model: Any) -> float:
    """On text that is neither learned from nor calibrated on; nats a token."""
    ids = torch.from_numpy(text(64, 10_000))
    return float(model(input_ids=ids, labels=ids).loss)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.from_numpy(text(4, 3))).logits
    return found


def calibration() -> Tokens:
    return text(16, 5_000)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"not": "read here" }\n')
    return folder


def conversion(model: Path, **shares: Any) -> Conversion:
    return Conversion(
        model=model,
        target="safetensors-pruned",
        recipe=Recipe(pruning=Pruning(**shares)),
        calibration=calibration,
        threads=1,
    )


@torch.no_grad()
def without_effect(layer: Any) -> None:
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()


@pytest.mark.parametrize("useless", [0, 1, 3])
def test_the_layer_that_does_nothing_is_the_one_that_goes(useless: int) -> None:
    model = trained()
    without_effect(model.model.layers[useless])
    before = logits(model)
    taken = pruning.prune(model, calibration(), Size(3, 4, 64), 1)
    assert [list(one.layers) for one in taken] == [[useless]]
    kinds = [kind for place, kind in enumerate(fresh().config.layer_types) if place != useless]
    assert model.config.layer_types == kinds
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_parts_that_nothing_reads_go_and_nothing_changes(kind: str, rounds: int) -> None:
    model, random = fresh(kind), np.random.default_rng(1)
    left = {"groups": [], "units": []}
    with torch.no_grad():
        for layer in model.model.layers:
            groups = sorted(random.choice(4, 2, replace=False))
            units = sorted(random.choice(64, 20, replace=False))
            for group in set(range(4)) - set(groups):
                layer.self_attn.o_proj.weight[:, group * 16 : (group + 1) * 16] = 0
            layer.mlp.down_proj.weight[:, sorted(set(range(64)) - set(units))] = 0
            left["groups"].append(groups)
            left["units"].append(units)
    kept = [
        layer.mlp.up_proj.weight[u].clone()
        for layer, u in zip(model.model.layers, left["units"], strict=True)
    ]
    before = logits(model)
    pruning.prune(model, calibration(), Size(4, 2, 20), rounds)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-6)
    for layer, weight in zip(model.model.layers, kept, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, weight)
    assert anatomy.size_of(model) == Size(4, 2, 20)
    assert (model.config.num_attention_heads, model.config.head_dim) == (4, 8)


def _random_removal(after: Size, seed: int) -> float:
    model, random = trained(), np.random.default_rng(seed)

    def some(count: int, of: int) -> list[int]:
        return sorted(int(one) for one in random.choice(of, count, replace=False))

    anatomy.keep_groups(model, [some(after.groups, 4) for _ in range(4)])
    anatomy.keep_units(model, [some(after.units, 64) for _ in range(4)])
    anatomy.keep_layers(model, some(after.layers, 4))
    return loss(model)


@pytest.mark.parametrize("after", [Size(3, 4, 64), Size(4, 3, 64), Size(4, 4, 32)])
def test_what_matters_least_costs_less_than_what_comes(after: Size) -> None:
    model = trained()
    pruning.prune(model, calibration(), after, 1)
    by_chance = [_random_removal(after, seed) for seed in range(5)]
    assert loss(model) < float(np.median(by_chance))


def test_rounds_end_where_one_does() -> None:
    model = trained()
    taken = pruning.prune(model, calibration(), Size(2, 2, 31), 4)
    assert anatomy.size_of(model) == Size(2, 2, 31)
    assert sum(one.units for one in taken) == 33
    assert sum(len(one.layers) for one in taken) == 2


def test_importance_leaves_the_model_as_it_was() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = importance.measure(model, calibration(), groups=True, units=True)
    assert found.groups is not None and found.units is not None
    assert (found.layers.shape, found.groups.shape, found.units.shape) == ((4,), (4, 4), (4, 64))
    assert (found.layers > 0).all() and (found.layers < 2).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.model.layers[0]._forward_hooks
    again = importance.measure(model, calibration(), groups=False, units=False)
    np.testing.assert_allclose(again.layers, found.layers, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_artifact_is_a_plain_model_of_its_class(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(trained().to(dtype), tmp_path / "model")
    made, output = pruning.Pruned(), tmp_path / "made"
    made.convert(conversion(model, depth=0.25, heads=0.5, width=0.3, rounds=2), output)
    assert made.inspect(output) == {str(dtype).removeprefix("torch."): 1.0}
    assert made.size_bytes(output) < 0.7 * plain.size_bytes(model)
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    assert type(loaded) is Qwen3ForCausalLM and loaded.dtype == dtype
    assert anatomy.size_of(loaded) == Size(3, 2, 45)
    ids = text(2, 1)
    generated = loaded.generate(torch.from_numpy(ids), max_new_tokens=4, do_sample=False)
    assert generated.shape == (2, 28)
    assert made.open(output, 1).logits(ids).shape == (2, 24, VOCABULARY)
    assert (output / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    report = json.loads((output / pruning.REPORT_FILE).read_text())
    assert report["before"] == {"layers": 4, "groups": 4, "units": 64}
    assert report["after"] == {"layers": 3, "groups": 2, "units": 45}
    assert len(report["rounds"]) == 2


def test_without_shares_a_quarter_of_the_width_goes(tmp_path: Path) -> None:
    model = saved(trained(), tmp_path / "model")
    pruning.Pruned().convert(conversion(model), tmp_path / "made")
    assert pruning.size_of_tensors(tmp_path / "made") == Size(4, 4, 48)
    assert pruning.wanted(Pruning(depth=0.5)).width == 0


def test_what_was_not_pruned_is_found(tmp_path: Path) -> None:
    model = saved(trained(), tmp_path / "model")
    pruning.Pruned().convert(conversion(model, width=0.5), tmp_path / "made")
    trained().save_pretrained(tmp_path / "made")  # over it
    with pytest.raises(JobError, match="units=64") as caught:
        pruning.Pruned().inspect(tmp_path / "made")
    assert caught.value.reason == "PRUNING_SKIPPED"


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"depth": 0.1}, "depth 0.1 takes none of the 4 layers"),
        ({"heads": 0.1, "width": 0.5}, "heads 0.1 takes none"),
        ({"depth": 0.0}, "takes nothing away"),
    ],
)
def test_a_share_that_takes_nothing_is_named(
    tmp_path: Path, shares: dict[str, float], told: str
) -> None:
    model = saved(trained(), tmp_path / "model")
    with pytest.raises(JobError, match=told) as caught:
        pruning.Pruned().convert(conversion(model, **shares), tmp_path / "made")
    assert caught.value.reason == "PRUNING_SKIPPED"
    assert not (tmp_path / "made").exists()


def _other_class(model: Any) -> Any:
    return GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=32, vocab_size=VOCABULARY)
    )


def _without_up(model: Any) -> Any:
    del model.model.layers[1].mlp.up_proj
    return model


def _with_more(model: Any) -> Any:
    model.model.layers[0].self_attn.sinks = torch.nn.Parameter(torch.zeros(8))
    return model


def _with_wide_norm(model: Any) -> Any:
    model.model.layers[0].self_attn.q_norm.weight = torch.nn.Parameter(torch.ones(64))
    return model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_other_class, "GPT2LMHeadModel cannot be pruned: it has no model.layers"),
        (_without_up, r"it has no linear model\.layers\.1\.mlp\.up_proj"),
        (_with_more, r"model\.layers\.0\.self_attn\.sinks is not known"),
        (_with_wide_norm, r"q_norm is over all heads"),
    ],
)
def test_another_form_is_refused_by_name(change: Callable[[Any], Any], told: str) -> None:
    with pytest.raises(JobError, match=told) as caught:
        anatomy.require_known(change(fresh()))
    assert caught.value.reason == "ARCHITECTURE_UNSUPPORTED"
