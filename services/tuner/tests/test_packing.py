"""Examples in one row: each is answered as it is alone, and learned with the same weight."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel
from tuner_builders import tokenizer, write_base

from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import adapter, checkpoint, packing, supervised_objective, training
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters, Supervised

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and datasets

LENGTHS = (5, 17, 3, 40)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("packing") / "base"
    write_base(directory)
    return directory


@pytest.fixture
def spec(base: Path, tmp_path: Path) -> Spec:
    digest = "sha256:" + "0" * 64
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=base,
        base_checkpoint_digest=digest,
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=digest,
        output_directory=tmp_path / "out",
        hyperparameters=Hyperparameters(1, 8, 1.0, precision="float32"),
        learning_rate=1e-3,
        adapter=Adapter(rank=4, alpha=8),
        threads=1,
    )


def texts() -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    return [torch.from_numpy(random.integers(3, 290, length)) for length in LENGTHS]


def packed(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of each text alone, and of all in one row; both of shape (tokens, vocabulary)."""
    batch = packing.PackingCollator()([{"input_ids": t, "labels": t} for t in texts()])
    del batch["labels"]
    with torch.no_grad():
        alone = torch.cat([model(text[None]).logits[0] for text in texts()])
        return alone, model(**batch).logits[0]


def test_each_example_is_answered_as_it_is_alone(base: Path) -> None:
    model = adapter.load_base(base / "model").eval()
    assert packing.enable(model)
    alone, together = packed(model)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_without_borders_it_would_not_be(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above, and the one that each run makes, see an example that leaks."""
    monkeypatch.setattr(packing, "_keeps_apart", lambda _model: True)
    model = adapter.load_base(base / "model").eval()
    packing.enable(model)

    def joined(*given: Any, lengths: Any = None, **more: Any) -> Any:
        return packing.attention(*given, lengths=lengths and (sum(lengths),), **more)

    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ATTENTION, joined)
    alone, together = packed(model)
    assert (alone - together)[: LENGTHS[0]].abs().max() < 1e-4
    assert (alone - together)[LENGTHS[0] :].abs().max() > 1e-2
    monkeypatch.undo()
    monkeypatch.setitem(packing.AttentionInterface._global_mapping, packing.ATTENTION, joined)
    again = adapter.load_base(base / "model")
    assert not packing.enable(again)
    assert again.config._attn_implementation == "sdpa"


def test_padded_batches_are_what_they_were(base: Path) -> None:
    plain = adapter.load_base(base / "model").eval()
    model = adapter.load_base(base / "model").eval()
    assert packing.enable(model)
    ids = torch.arange(3, 43).view(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        expected, found = (m(ids, attention_mask=mask).logits for m in (plain, model))
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1, :12], expected[1, :12])
        torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_a_window_of_attention_is_left_alone() -> None:
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    assert not packing.enable(MistralForCausalLM(config))


def examples(count: int) -> list[Example]:
    """Of unequal lengths, the first token of some being learned too."""
    random = np.random.default_rng(1)
    made = []
    for number in range(count):
        length = int(random.integers(4, 40))
        ids = random.integers(3, 290, length).astype(np.int32)
        made.append(Example(ids, np.arange(length) >= number % 3, was_truncated=False))
    return made


def losses(spec: Spec, packing: bool, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of each step, of the same batches either way."""
    order = supervised_objective.EpochSampler
    monkeypatch.setattr(
        supervised_objective,
        "EpochSampler",
        lambda lengths, size, seed: order([0] * len(lengths), size, seed),
    )
    output = spec.output_directory.with_name(f"packing-{packing}")
    output.mkdir()
    changed = {"method": Supervised(packing=packing), "output_directory": output}
    asked = spec.model_copy(update=changed)
    codec = ChatCodec(tokenizer(), ("<|endoftext|>",))
    made = examples(22)
    objective = SupervisedObjective(codec, Material(made[2:], made[:2], "split", 0, 0))
    run = Run(asked, objective, codec.tokenizer, Reporter(io.StringIO()), Cancellation())
    run.train()
    assert len(checkpoint.checkpoints(output, asked.digest)) == 1
    return [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("logits_at_once", [1 << 27, 0])
def test_every_learned_token_weighs_the_same_as_in_padded_batches(
    spec: Spec, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_objective, "_LOGITS_AT_ONCE", logits_at_once)
    given = replace(spec.hyperparameters, gradient_checkpointing=logits_at_once > 0)
    spec = spec.model_copy(update={"hyperparameters": given})
    expected = losses(spec, packing=False, monkeypatch=monkeypatch)
    found = losses(spec, packing=True, monkeypatch=monkeypatch)
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_collator_lays_them_one_behind_the_other() -> None:
    features = [
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
        {"input_ids": [8, 9], "labels": [-100, 9]},
    ]
    batch = packing.PackingCollator()(features)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["lengths"] == (3, 2)


def test_half_precision_without_a_gpu_is_refused_by_name(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = replace(spec.hyperparameters, precision="float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JobError, match="precision float16") as caught:
        training.resolve_precision(spec.model_copy(update={"hyperparameters": given}))
    assert caught.value.reason == "PRECISION_UNSUPPORTED"
