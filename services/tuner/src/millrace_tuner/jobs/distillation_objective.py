"""Learning a teacher's distributions, of answers that are given or that the student writes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from millrace_tuner.jobs import adapter, policy
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.divergence import Batch, Divergence
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.policy import Pen
from millrace_tuner.jobs.prompts import Prompt
from millrace_tuner.jobs.supervised_objective import (
    Material,
    OrderedTrainer,
    SupervisedObjective,
    dataset,
)
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Distillation

_IGNORED = -100


class StudentTrainer(OrderedTrainer):
    """Learns a divergence; at some steps of answers that the model in training has written."""

    def __init__(
        self,
        *,
        divergence: Divergence,
        student: PreTrainedModel,
        own_answers: float,
        pen: Pen,
        limit: int,
        precision: torch.dtype,
        **arguments: Any,
    ) -> None:
        self._divergence = divergence
        self._student = student
        self._own_answers = own_answers
        self._pen = pen
        self._limit = limit
        self._precision = precision
        super().__init__(**arguments)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        with self.accelerator.autocast():
            found = self._divergence(model, self._student, inputs)
        tokens = max(found.tokens, 1)
        metrics = self._metrics["train"]
        metrics["entropy"].append(float(found.entropy) / tokens)
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        metrics["num_tokens"] = [self._total_train_tokens]
        return found.divergence / (num_items_in_batch or tokens)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The batches of a step, and how many tokens they teach."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        random = np.random.default_rng((self.args.seed, self.state.global_step))
        if not batches or random.random() >= self._own_answers:
            return batches, tokens
        with torch.random.fork_rng():
            torch.manual_seed(int(random.integers(2**63)))
            batches = [self._answered(batch) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def _answered(self, batch: Batch) -> Batch:
        """The prompts of a batch, with answers of the student's own."""
        prompts = [_prompt(*row) for row in _rows(batch)]
        room = self._limit - max(len(prompt.token_ids) for prompt in prompts)
        pen = replace(self._pen, maximum_tokens=min(self._pen.maximum_tokens, room))
        answers = policy.write(self.model, prompts, pen, 1.0, self._precision)
        features = [
            _feature(prompt.token_ids, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        device = batch["input_ids"].device
        return {name: value.to(device) for name, value in self.data_collator(features).items()}


def _rows(batch: Batch) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Token ids and labels of each row, without its padding."""
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        length = int(mask.sum())
        yield ids[:length].cpu().numpy(), labels[:length].cpu().numpy()


def _prompt(token_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> Prompt:
    """What precedes the last answer that is learned."""
    is_learned = labels != _IGNORED
    begins = is_learned & ~np.concatenate([[False], is_learned[:-1]])
    start = int(np.flatnonzero(begins)[-1])
    return Prompt(line=0, text="", token_ids=token_ids[:start].astype(np.int32), item={})


def _feature(prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> dict[str, list[int]]:
    return {
        "input_ids": [*prompt.tolist(), *answer.tolist()],
        "labels": [_IGNORED] * len(prompt) + answer.tolist(),
    }


class DistillationObjective(SupervisedObjective):
    """``objective.Objective`` of the method "distillation"."""

    names: Mapping[str, str] = {"train_entropy": "entropy"}

    def __init__(
        self,
        codec: ChatCodec,
        material: Material,
        method: Distillation,
        teacher: Path,
        limit: int,
    ) -> None:
        """``teacher`` is a model's directory, ``limit`` of tokens that a sequence may have."""
        super().__init__(codec, material)
        self._method = method
        self._teacher = teacher
        self._limit = limit
        if method.own_answers:
            self.counts = replace(self.counts, training_tokens=None)

    def build_trainer(self, run: Run, model: PreTrainedModel) -> Trainer:
        training, spec = self._material.training, run.spec
        with torch.random.fork_rng():  # loading a model draws random numbers
            teacher = adapter.load_base(self._teacher)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        teacher.to(device, run.precision)  # type: ignore[arg-type]  # the stub hides Module.to
        self._student = model
        self._divergence = Divergence(teacher, self._method)
        lengths = [len(example.token_ids) for example in training]
        return StudentTrainer(
            divergence=self._divergence,
            student=model,
            own_answers=self._method.own_answers,
            pen=policy.pen(self._codec, model, _longest_answer(training)),
            limit=self._limit,
            precision=run.precision,
            sampler=EpochSampler(lengths, spec.hyperparameters.batch_size, spec.seed),
            model=model,
            args=SFTConfig(
                **run.arguments(),
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                include_num_input_tokens_seen="non_padding",
            ),
            train_dataset=dataset(training),
            processing_class=self._codec.tokenizer,
            peft_config=adapter.configuration(spec, model, self.task),
        )

    def measure(self, run: Run) -> dict[str, float]:
        """The loss of the held-out answers, and how far the student is from the teacher there."""
        return {**super().measure(run), "valid_divergence": self._mean_divergence(run)}

    @torch.no_grad()
    def _mean_divergence(self, run: Run) -> float:
        was_training = run.model.training
        run.model.eval()
        device = next(run.model.parameters()).device
        collate = DataCollatorForLanguageModeling(pad_token_id=self._codec.tokenizer.pad_token_id)
        is_mixed = run.precision != torch.float32
        total, tokens = 0.0, 0
        for example in self._material.heldout:
            feature = {"input_ids": example.token_ids.tolist(), "labels": example.labels.tolist()}
            batch = {name: value.to(device) for name, value in collate([feature]).items()}
            with torch.autocast(device.type, dtype=run.precision, enabled=is_mixed):
                found = self._divergence(run.model, self._student, batch)
            total += float(found.divergence)
            tokens += found.tokens
        run.model.train(was_training)
        return total / max(tokens, 1)


def _longest_answer(training: Sequence[Example]) -> int:
    """In tokens: so long the student's own answers may become."""
    return max(_longest_run(example.is_learned) for example in training)


def _longest_run(is_learned: NDArray[np.bool_]) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_learned, [False]])))
    return int((edges[1::2] - edges[::2]).max())
