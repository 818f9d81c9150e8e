"""Learning to tell classes apart, by the last token of a text (or as the base's kind does it).

The head is trained whole, whatever the adapter.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import adapter
from millrace_tuner.jobs.class_examples import ClassExample, Material
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.objective import Counts, Criterion
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.preference_trainers import PreparedTrainer
from millrace_tuner.jobs.training import Run

Batch = dict[str, torch.Tensor]


class ClassTrainer(PreparedTrainer):
    """Every text counts the same, whatever its batch."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._hits: list[torch.Tensor] = []

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        logits, labels = _logits(model, inputs), inputs["labels"]
        self._hits.append((logits.argmax(-1) == labels).float())
        loss = cross_entropy(logits, labels, reduction="sum")
        return loss / (num_items_in_batch or len(labels))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._hits:
            logs["accuracy"] = float(torch.cat(self._hits).mean())
            self._hits.clear()
        super().log(logs, start_time)


def _logits(model: Any, inputs: Batch) -> torch.Tensor:
    """Shape (texts, classes)."""
    logits: torch.Tensor = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).logits
    return logits.float()


class ClassificationObjective:
    """``objective.Objective`` of the method "classification"."""

    task = "SEQ_CLS"
    criterion = Criterion()
    names: Mapping[str, str] = {"train_accuracy": "accuracy"}

    def __init__(self, codec: ChatCodec, labels: Sequence[str], material: Material) -> None:
        """``labels`` are the classes, in the order of their numbers."""
        self._codec = codec
        self._labels = labels
        self._material = material
        every = (*material.training, *material.heldout)
        self.longest_tokens = max(len(example.token_ids) for example in every)
        self.counts = Counts(
            training_examples=len(material.training),
            heldout_examples=len(material.heldout),
            training_tokens=sum(len(example.token_ids) for example in material.training),
            heldout_source=material.heldout_source,
            truncated_examples=material.truncated,
        )

    @property
    def _pad_token_id(self) -> int:
        """Models without one mark where a text ends by it; any other token would do as well."""
        tokenizer = self._codec.tokenizer
        found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return int(found)

    def load_model(self, directory: Path) -> PreTrainedModel:
        """The base with a new head, which is drawn from the global random state."""
        try:
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                directory,
                id2label=dict(enumerate(self._labels)),
                label2id={label: number for number, label in enumerate(self._labels)},
                problem_type="single_label_classification",
                pad_token_id=self._pad_token_id,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # the base may have had a head of other classes
            )
        except (OSError, ValueError, KeyError) as error:
            message = f"the base checkpoint's model cannot be given a head: {error}"
            raise JobError("BASE_MODEL_UNSUPPORTED", message) from error
        return model

    def steps_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self._material.training) / batch_size)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training = self._material.training
        lengths = [len(example.token_ids) for example in training]
        config = adapter.configuration(run.spec, model, self.task)
        learned: Any = model if config is None else get_peft_model(model, config)
        return ClassTrainer(
            sampler=EpochSampler(lengths, run.spec.hyperparameters.batch_size, run.spec.seed),
            model=learned,
            args=TrainingArguments(**run.arguments(), remove_unused_columns=False),
            data_collator=self._collate,
            train_dataset=Dataset.from_list([_row(example) for example in training]),
            processing_class=self._codec.tokenizer,
        )

    def _collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        ids = [torch.as_tensor(np.asarray(row["input_ids"], dtype=np.int64)) for row in rows]
        real = [torch.ones_like(each) for each in ids]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad_token_id),
            "attention_mask": pad_sequence(real, batch_first=True),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    @torch.no_grad()
    def measure(self, run: Run) -> dict[str, float]:
        """Dropout is off, and no random number is drawn."""
        was_training = run.model.training
        run.model.eval()
        device = next(run.model.parameters()).device
        is_mixed = run.precision != torch.float32
        heldout = sorted(self._material.heldout, key=lambda example: len(example.token_ids))
        loss, predicted = 0.0, []
        for start in range(0, len(heldout), run.micro_batch_size):
            rows = [_row(example) for example in heldout[start : start + run.micro_batch_size]]
            batch = {name: value.to(device) for name, value in self._collate(rows).items()}
            with torch.autocast(device.type, dtype=run.precision, enabled=is_mixed):
                logits = _logits(run.model, batch)
            loss += float(cross_entropy(logits, batch["labels"], reduction="sum"))
            predicted += logits.argmax(-1).tolist()
        run.model.train(was_training)
        found, wanted = np.array(predicted), np.array([example.number for example in heldout])
        return {
            "valid_loss": loss / len(heldout),
            "valid_accuracy": float((found == wanted).mean()),
            "valid_f1_macro": f1_macro(found, wanted),
        }

    def heldout_stream(self) -> None:
        """A classifier is not compressed."""

    def calibration_rows(self) -> None:
        """There is nothing to compress it for."""


def _row(example: ClassExample) -> dict[str, Any]:
    return {"input_ids": example.token_ids, "label": example.number}


def f1_macro(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """The mean of F1 over the classes that occur in either; shapes (texts,)."""
    scores = []
    for number in np.union1d(found, wanted):
        hits = int(((found == number) & (wanted == number)).sum())
        seen = int((found == number).sum()) + int((wanted == number).sum())
        scores.append(2 * hits / seen)
    return float(np.mean(scores))
