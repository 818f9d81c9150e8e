"""Learning to write targets after their sources, with transformers' Seq2SeqTrainer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import adapter
from millrace_tuner.jobs.objective import Counts, Criterion
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.pair_examples import Material, PairExample
from millrace_tuner.jobs.preference_trainers import PreparedTrainer
from millrace_tuner.jobs.training import Run

_IGNORED = -100
Batch = dict[str, torch.Tensor]


class PairTrainer(PreparedTrainer, Seq2SeqTrainer):
    """Every token of the targets counts the same, whatever its batch."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss, tokens = _loss(model, inputs)
        return loss / (num_items_in_batch or max(tokens, 1))


def _loss(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    """The sum over the tokens of the targets, in nats, and how many they are."""
    labels = batch["labels"]
    logits = model(**batch, use_cache=False).logits[:, -labels.shape[1] :]
    flat = logits.flatten(0, 1).float()
    loss = cross_entropy(flat, labels.flatten(), ignore_index=_IGNORED, reduction="sum")
    return loss, int((labels != _IGNORED).sum())


class SequenceObjective:
    """``objective.Objective`` of the method "sequence"."""

    task = "SEQ_2_SEQ_LM"
    criterion = Criterion()
    names: Mapping[str, str] = {}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, material: Material, limit: int) -> None:
        """``limit`` is of the tokens that a side may have."""
        self._tokenizer = tokenizer
        self._material = material
        every = (*material.training, *material.heldout)
        self.longest_tokens = max(example.tokens for example in every)
        longest_target = max(len(example.target) for example in every)
        self._written_tokens = min(2 * longest_target, limit)
        self.counts = Counts(
            training_examples=len(material.training),
            heldout_examples=len(material.heldout),
            training_tokens=sum(example.tokens for example in material.training),
            heldout_source=material.heldout_source,
            truncated_examples=material.truncated,
        )

    def load_model(self, directory: Path) -> PreTrainedModel:
        try:
            model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            message = f"the base checkpoint's model cannot be loaded: {error}"
            raise JobError("BASE_MODEL_UNSUPPORTED", message) from error
        return model

    def steps_per_epoch(self, batch_size: int) -> int:
        return math.ceil(len(self._material.training) / batch_size)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training = self._material.training
        lengths = [example.tokens for example in training]
        config = adapter.configuration(run.spec, model, self.task)
        learned: Any = model if config is None else get_peft_model(model, config)
        # With the model, so that it makes the decoder's inputs from the labels.
        self._collate = DataCollatorForSeq2Seq(self._tokenizer, model=model)
        return PairTrainer(
            sampler=EpochSampler(lengths, run.spec.hyperparameters.batch_size, run.spec.seed),
            model=learned,
            args=Seq2SeqTrainingArguments(**run.arguments(), remove_unused_columns=False),
            data_collator=self._collate,
            train_dataset=Dataset.from_list([_row(example) for example in training]),
            processing_class=self._tokenizer,
        )

    @torch.no_grad()
    def measure(self, run: Run) -> dict[str, float]:
        """Dropout is off, and no random number is drawn."""
        was_training = run.model.training
        run.model.eval()
        device = next(run.model.parameters()).device
        is_mixed = run.precision != torch.float32
        loss, tokens, matches = 0.0, 0, 0
        for examples in self._in_batches(run.micro_batch_size):
            made = self._collate([_row(example) for example in examples])
            batch = {name: made[name].to(device) for name in made}
            with torch.autocast(device.type, dtype=run.precision, enabled=is_mixed):
                found, count = _loss(run.model, batch)
                written = self._write(run.model, batch)
            loss += float(found)
            tokens += count
            matches += sum(
                text == self._text(example.target.tolist())
                for text, example in zip(written, examples, strict=True)
            )
        run.model.train(was_training)
        exact = matches / len(self._material.heldout)
        return {"valid_loss": loss / max(tokens, 1), "valid_exact_match": exact}

    def _in_batches(self, size: int) -> Iterator[Sequence[PairExample]]:
        ordered = sorted(self._material.heldout, key=lambda example: example.tokens)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _write(self, model: Any, batch: Batch) -> list[str]:
        """What the model makes of each source, the likeliest token each time."""
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self._written_tokens,
            do_sample=False,
            num_beams=1,
            decoder_start_token_id=_first_token(model),
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
            disable_compile=True,
        )
        written = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=config,
        )
        return [self._text(row) for row in written.tolist()]

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return str(text).strip()

    def heldout_stream(self) -> None:
        """What has an encoder is not compressed."""

    def calibration_rows(self) -> None:
        """There is nothing to compress it for."""


def _first_token(model: Any) -> int | None:
    """With which the decoder begins; some checkpoints say it for generation only."""
    for config in (model.config, model.generation_config):
        found: int | None = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return found
    return None


def _row(example: PairExample) -> dict[str, Any]:
    return {"input_ids": example.source.tolist(), "labels": example.target.tolist()}
