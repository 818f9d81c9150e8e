"""Learning the assistant's answers, with TRL's SFTTrainer.

The trainer gets examples that are already tokens and labels, so that nothing of TRL's own data
preparation decides what is learned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from millrace_tuner.jobs import adapter, evaluation, examples, packing
from millrace_tuner.jobs.calibration import Rows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.objective import Counts, Criterion
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Supervised

_IGNORED = -100
_LOGITS_AT_ONCE = 1 << 27  # 512 MiB in float32


@dataclass(frozen=True)
class Material:
    """What there is to learn and to measure by, and what was cut from it."""

    training: Sequence[Example]
    heldout: Sequence[Example]
    heldout_source: str
    truncated: int
    skipped: int

    @property
    def counts(self) -> Counts:
        return Counts(
            training_examples=len(self.training),
            heldout_examples=len(self.heldout),
            training_tokens=sum(len(example.token_ids) for example in self.training),
            heldout_source=self.heldout_source,
            truncated_examples=self.truncated,
            skipped_examples=self.skipped,
        )


class OrderedTrainer(SFTTrainer):
    """TRL's trainer, with examples in the order of ``sampler``."""

    def __init__(self, *, sampler: EpochSampler, **arguments: Any) -> None:
        self._sampler = sampler
        super().__init__(**arguments)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self._sampler


class PackedTrainer(OrderedTrainer):
    """Computes logits only where something is learned, of examples that lie in one row.

    TRL's own loss, on CPUs, computes those of every position, and their entropies.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"][0, 1:]
        learned = (labels != _IGNORED).nonzero()[:, 0]
        trained: Any = self.model
        vocabulary_size = trained.config.get_text_config().vocab_size
        if len(learned) * vocabulary_size > _LOGITS_AT_ONCE:
            # In tiles: slower, but logits of large vocabularies are never there as a whole.
            return super().compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, return_outputs, num_items_in_batch
            )
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**given, use_cache=False, logits_to_keep=learned).logits[0].float()
        targets = labels[learned]
        loss = cross_entropy(logits, targets, reduction="sum") / (
            num_items_in_batch or len(learned)
        )
        self._count(logits.detach(), targets, labels.numel() + 1)
        return loss

    def _count(self, logits: torch.Tensor, targets: torch.Tensor, tokens: int) -> None:
        """What TRL logs with every step, of what the recorder reports."""
        correct = (logits.argmax(-1) == targets).float().mean()
        self._metrics["train"]["mean_token_accuracy"].append(correct.item())
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


class SupervisedObjective:
    """``objective.Objective`` of the method "supervised"."""

    task = "CAUSAL_LM"
    criterion = Criterion()
    names: Mapping[str, str] = {"train_accuracy": "mean_token_accuracy"}

    def __init__(self, codec: ChatCodec, material: Material) -> None:
        self._codec = codec
        self._material = material
        self.counts = material.counts
        every = (*material.training, *material.heldout)
        self.longest_tokens = max(len(example.token_ids) for example in every)

    def load_model(self, directory: Path) -> PreTrainedModel:
        return adapter.load_base(directory)

    def steps_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self._material.training) / batch_size)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training, spec = self._material.training, run.spec
        is_packed = _wants_packing(spec) and packing.enable(model)
        # Without padding there is no reason to put examples of like length together.
        lengths = [0 if is_packed else len(example.token_ids) for example in training]
        trainer = PackedTrainer if is_packed else OrderedTrainer
        return trainer(
            sampler=EpochSampler(lengths, spec.hyperparameters.batch_size, spec.seed),
            model=model,
            args=SFTConfig(
                **run.arguments(), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
            ),
            data_collator=packing.PackingCollator() if is_packed else None,
            train_dataset=dataset(training),
            processing_class=self._codec.tokenizer,
            peft_config=adapter.configuration(spec, model, self.task),
        )

    def measure(self, run: Run) -> dict[str, float]:
        """Every learned token counts the same, whatever its batch."""
        score = evaluation.score(
            run.model,
            self._material.heldout,
            pad_token_id=self._codec.tokenizer.pad_token_id,
            batch_size=run.micro_batch_size,
            precision=run.precision,
        )
        return {"valid_loss": score.loss, "valid_mean_token_accuracy": score.accuracy}

    def heldout_stream(self) -> NDArray[Any]:
        tokenizer = self._codec.tokenizer
        return examples.heldout_stream(
            self._material.heldout, tokenizer.eos_token_id, len(tokenizer)
        )

    def calibration_rows(self) -> Rows:
        """The examples, whole: what is learned of them and what comes before it."""
        training, heldout = self._material.training, self._material.heldout
        return Rows([e.token_ids for e in training], [e.token_ids for e in heldout])


def _wants_packing(spec: Spec) -> bool:
    """PEFT gives a prompt or prefix to every row, not to every example, of a batch."""
    assert isinstance(spec.method, Supervised)
    return spec.method.packing and spec.adapter.kind not in ("prompt", "prefix")


def dataset(training: Sequence[Example]) -> Dataset:
    """Columns as TRL's collator takes them."""
    columns = {
        "input_ids": [example.token_ids for example in training],
        "labels": [_targets(example) for example in training],
    }
    return Dataset.from_dict(columns)


def _targets(example: Example) -> NDArray[np.int32]:
    """Nothing predicts the first token: it must not be counted among the learned ones."""
    labels = example.labels
    labels[0] = _IGNORED
    return labels
