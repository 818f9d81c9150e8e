"""Every kind of adapter: it learns, is merged exactly, and is written as the same bytes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from tuner_builders import conversations, tokenizer, write_base, write_jsonl

from millrace_runtime.errors import InvalidArgument
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner import adapter_rules
from millrace_tuner.jobs import adapter, bottleneck, checkpoint
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import LOW_RANK, NOT_MERGED, Adapter, Hyperparameters

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and PEFT

WIDTH, LAYERS = 64, 2


def some_examples(count: int) -> list[Example]:
    """Texts of one pattern: each token follows from the one before."""
    made = []
    for number in range(count):
        ids = (np.arange(24 + number % 7) * 5 + number) % 290 + 3
        made.append(Example(ids.astype(np.int32), np.arange(len(ids)) > 3, was_truncated=False))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("adapters") / "base"
    return directory, write_base(directory, hidden_size=WIDTH, layers=LAYERS)


@pytest.fixture
def spec(base: tuple[Path, str], tmp_path: Path) -> Spec:
    directory, digest = base
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=directory,
        base_checkpoint_digest=digest,
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=write_jsonl(tmp_path / "train.jsonl", conversations(2)),
        output_directory=tmp_path / "out",
        hyperparameters=Hyperparameters(2, 4, 1.0, precision="float32"),
        learning_rate=1e-2,
        threads=1,
    )


def with_adapter(spec: Spec, **given: Any) -> Spec:
    return spec.model_copy(update={"adapter": Adapter(**given)})


def made_run(spec: Spec, cancellation: Cancellation | None = None) -> Run:
    from millrace_tuner.jobs.codec import ChatCodec

    spec.output_directory.mkdir(exist_ok=True)
    made = some_examples(22)
    codec = ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))
    objective = SupervisedObjective(codec, Material(made[2:], made[:2], "split", 0, 0))
    reporter = Reporter(io.StringIO())
    return Run(spec, objective, tokenizer(), reporter, cancellation or Cancellation())


def trained(spec: Spec) -> tuple[Run, Committed]:
    run = made_run(spec)
    run.train()
    return run, checkpoint.checkpoints(spec.output_directory, spec.digest)[-1]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 83).view(4, 20)).logits
    return found


def loaded(spec: Spec) -> PreTrainedModel:
    return adapter.load_base(spec.base_checkpoint_path / "model")


RATES = {"adalora": 0.1, "ia3": 0.2, "prompt": 0.3, "prefix": 0.1}
MERGED: list[dict[str, Any]] = [
    *({"kind": kind, "rank": 4, "alpha": 8.0} for kind in sorted(LOW_RANK)),
    {"kind": "ia3"},
    {"kind": "lora", "rank": 4, "full_modules": ("norm", "mlp", "embed_tokens")},
    {"kind": "lora", "rank": 4, "quantized_base": True},
    {"kind": "dora", "rank": 4, "quantized_base": True, "full_modules": ("k_proj",)},
    {"kind": "adalora", "rank": 4, "quantized_base": True},
]


@pytest.mark.parametrize("given", MERGED, ids=str)
def test_it_learns_and_the_merged_model_is_base_and_adapter(
    spec: Spec, given: dict[str, Any]
) -> None:
    rate = RATES.get(given["kind"], spec.learning_rate)
    asked = with_adapter(spec, **given).model_copy(update={"learning_rate": rate})
    run, final = trained(asked)
    losses = run.base_measured["valid_loss"], final.metadata["valid"]["valid_loss"]
    assert losses[1] < losses[0] - 0.02, losses
    adapted = PeftModel.from_pretrained(loaded(spec), final.path / "adapter")
    merged = adapter.load_base(final.path / "model")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - logits(loaded(spec))).abs().max() > 1e-3
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == merged.config.tie_word_embeddings


@pytest.mark.parametrize("kind", sorted(NOT_MERGED))
def test_what_cannot_be_merged_is_an_adapter_alone(spec: Spec, kind: Any) -> None:
    rate = RATES.get(kind, spec.learning_rate)
    asked = with_adapter(spec, kind=kind, rank=4, virtual_tokens=4)
    run, final = trained(asked.model_copy(update={"learning_rate": rate}))
    assert final.metadata["valid"]["valid_loss"] < run.base_measured["valid_loss"] - 0.02
    assert sorted(path.name for path in final.path.iterdir() if path.is_dir()) == [
        "adapter",
        "evaluation",
    ]
    again = loaded(spec)
    if kind == "bottleneck":
        bottleneck.load(again, final.path / "adapter")
    else:
        again = PeftModel.from_pretrained(again, final.path / "adapter")
    torch.testing.assert_close(logits(again), logits(run.model))


def _digests(spec: Spec) -> list[str]:
    return [c.digest for c in checkpoint.checkpoints(spec.output_directory, spec.digest)]


@pytest.mark.parametrize("kind", ["adalora", "bottleneck", "prefix"])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(
    spec: Spec, kind: Any, tmp_path: Path
) -> None:
    asked = with_adapter(spec, kind=kind, rank=4, virtual_tokens=4)
    trained(asked)
    moved = asked.model_copy(update={"output_directory": tmp_path / "other"})
    cancellation = Cancellation()
    run = made_run(moved, cancellation)
    stop_at(run, 7, cancellation)
    with pytest.raises(JobError, match="stopped on request"):
        run.train()
    trained(moved)
    assert _digests(moved) == _digests(asked)


def stop_at(run: Run, step: int, cancellation: Cancellation) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step - 1:
                cancellation.requested = True

    run.trainer.add_callback(Stop())


def test_a_part_of_adaptive_ranks_is_given_up(spec: Spec) -> None:
    run, final = trained(with_adapter(spec, kind="adalora", rank=4))
    kept = [
        int((weight != 0).sum())
        for name, weight in run.model.named_parameters()
        if "lora_E" in name
    ]
    assert sum(kept) == 4 * len(kept)  # of six each in the beginning
    config = json.loads((final.path / "adapter/adapter_config.json").read_text())
    assert (config["total_step"], config["tinit"], config["tfinal"]) == (10, 1, 3)


def test_four_bits_hold_all_linear_layers_but_the_head(spec: Spec) -> None:
    import bitsandbytes

    run = made_run(with_adapter(spec, rank=4, quantized_base=True, full_modules=("v_proj",)))
    held = [m for m in run.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(held) == LAYERS * 6
    assert {layer.weight.dtype for layer in held} == {torch.uint8}
    assert {layer.weight.quant_state.quant_type for layer in held} == {"nf4"}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"target_modules": ("x_proj",)}, "q_proj"),
        ({"full_modules": ("x_norm",)}, "embed_tokens"),
        ({"kind": "loha", "full_modules": ("embed_tokens",)}, "lora"),
        ({"kind": "bottleneck", "target_modules": ("x_proj",)}, "down_proj"),
    ],
)
def test_modules_that_are_not_there_are_named(
    spec: Spec, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(JobError) as caught:
        made_run(with_adapter(spec, **given))
    assert caught.value.reason == "ADAPTER_TARGET_UNKNOWN"
    assert named in str(caught.value)


ASKED = {"rank": 0, "alpha": 0.0, "virtual_tokens": 0}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kind": "ia3", "rank": 8}, "rank"),
        ({"kind": "lora", "virtual_tokens": 8}, "virtual_tokens"),
        ({"kind": "loha", "dropout": 0.1}, "dropout"),
        ({"kind": "lokr", "quantized_base": True}, "quantized_base"),
        ({"kind": "ia3", "quantized_base": True}, "quantized_base"),
        ({"kind": "prompt", "full_modules": ("norm",)}, "full_modules"),
        ({"kind": "none", "quantized_base": True}, "quantized_base"),
        ({"kind": "bottleneck", "alpha": 8.0}, "alpha"),
        ({"target_modules": ("q_proj",), "full_modules": ("q_proj",)}, "full_modules"),
    ],
)
def test_parameters_without_a_use_are_refused_by_name(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        adapter_rules.require_meaningful(Adapter(**{**ASKED, **given}), False)
    assert caught.value.field == f"method.adapter.{field}"


def test_what_a_kind_uses_is_taken() -> None:
    adapter_rules.require_meaningful(None, gradient_checkpointing=True)
    every = {"rank": 8, "alpha": 8.0, "dropout": 0.1, "quantized_base": True}
    adapter_rules.require_meaningful(Adapter(**every, virtual_tokens=0), True)
    prefix = Adapter("prefix", rank=0, alpha=0.0, virtual_tokens=8)
    adapter_rules.require_meaningful(prefix, gradient_checkpointing=False)
    with pytest.raises(InvalidArgument, match="gradient_checkpointing"):
        adapter_rules.require_meaningful(prefix, gradient_checkpointing=True)
