"""One supervised fine-tuning with TRL's SFTTrainer, and what happens around its steps.

The trainer gets examples that are already tokens and labels, so that nothing of TRL's own data
preparation decides what is learned. Everything is drawn from the seed: the order of examples,
the adapter's first weights and dropout. On one machine with one number of threads, a run that
was killed and resumed ends with the same bytes as one that was not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerState,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from millrace_runtime import manifest
from millrace_runtime.jobs import Reporter
from millrace_runtime.tracking import Tracking
from millrace_tuner.jobs import adapter, checkpoint, evaluation, examples
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.evaluation import Score
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.metrics import MetricsFile
from millrace_tuner.jobs.order import EpochSampler
from millrace_tuner.jobs.recorder import Recorder
from millrace_tuner.jobs.specification import Spec

_MICRO_BATCH_TOKENS = 16_384  # what one forward pass holds at most, padding included
_WARMUP_FRACTION = 0.03
_MAXIMUM_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Material:
    """What there is to learn and to measure by, and what was cut from it."""

    training: Sequence[Example]
    heldout: Sequence[Example]
    maximum_tokens: int
    truncated: int
    skipped: int

    @property
    def training_tokens(self) -> int:
        return sum(len(example.token_ids) for example in self.training)


class OrderedTrainer(SFTTrainer):
    """TRL's trainer, with examples in the order of ``sampler``."""

    def __init__(self, *, sampler: EpochSampler, **arguments: Any) -> None:
        self._sampler = sampler
        super().__init__(**arguments)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        return self._sampler


class Run:
    """One fine-tuning: a model, its examples, and the directory that it writes to."""

    def __init__(
        self,
        spec: Spec,
        model: PreTrainedModel,
        codec: ChatCodec,
        material: Material,
        reporter: Reporter,
        cancellation: Cancellation,
    ) -> None:
        self.spec = spec
        self.codec = codec
        self.material = material
        self.reporter = reporter
        self.cancellation = cancellation
        self.metrics = MetricsFile(spec.output_directory)
        self.precision = resolve_precision(spec)
        self.micro_batch_size = micro_batch_size(spec, material)
        self.steps_per_epoch = math.ceil(len(material.training) / spec.hyperparameters.batch_size)
        self.total_steps = self.steps_per_epoch * spec.hyperparameters.n_epochs
        self.trainer_directory = manifest.temporary_sibling(spec.output_directory / "trainer")
        self.trainer = self._build_trainer(model)
        self.base_score = self.measure()
        self.tracking = self._start_tracking()

    def _build_trainer(self, model: PreTrainedModel) -> SFTTrainer:
        set_seed(self.spec.seed)
        trainer = OrderedTrainer(
            sampler=EpochSampler(
                [len(example.token_ids) for example in self.material.training],
                self.spec.hyperparameters.batch_size,
                self.spec.seed,
            ),
            model=model,
            args=self._arguments(),
            train_dataset=_dataset(self.material.training),
            processing_class=self.codec.tokenizer,
            peft_config=adapter.lora_config(self.spec, model),
            callbacks=[Recorder(self)],
        )
        # The reporter says it all.
        trainer.remove_callback(PrinterCallback)  # type: ignore[no-untyped-call]
        return trainer

    def _arguments(self) -> SFTConfig:
        given = self.spec.hyperparameters
        return SFTConfig(
            output_dir=str(self.trainer_directory),
            num_train_epochs=given.n_epochs,
            per_device_train_batch_size=self.micro_batch_size,
            gradient_accumulation_steps=given.batch_size // self.micro_batch_size,
            learning_rate=given.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(self.total_steps * _WARMUP_FRACTION),
            weight_decay=0.0,
            max_grad_norm=_MAXIMUM_GRADIENT_NORM,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            bf16=self.precision == torch.bfloat16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            seed=self.spec.seed,
            data_seed=self.spec.seed,
            save_strategy="epoch",
            eval_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
        )

    @property
    def model(self) -> Any:
        """The model in training: a ``PeftModel`` around it, unless all of it is tuned."""
        return self.trainer.model

    def _start_tracking(self) -> Tracking | None:
        if self.spec.mlflow_tracking_uri is None:
            return None
        given = {**self.spec.hyperparameters.model_dump(), "seed": self.spec.seed}
        given["base_version"] = self.spec.base_version
        return Tracking(self.spec.mlflow_tracking_uri, self.spec.job, self.spec.model, given)

    def train(self, resume_from: Committed | None) -> None:
        """Train to the end, committing a checkpoint at the end of each epoch.

        Raises:
            JobError: CANCELLED (the state of the last step is committed), TRAINING_DIVERGED.
        """
        resume = None if resume_from is None else str(resume_from.path)
        self.trainer.train(resume_from_checkpoint=resume)
        if self.tracking is not None:
            self.tracking.close()
        manifest.remove_tree(self.trainer_directory)
        self.cancellation.raise_if_requested()

    def measure(self) -> Score:
        """The score of the model as it is now on the held-out examples."""
        return evaluation.score(
            self.model,
            self.material.heldout,
            pad_token_id=self.codec.tokenizer.pad_token_id,
            batch_size=self.micro_batch_size,
            precision=self.precision,
        )

    def commit_checkpoint(self, state: TrainerState) -> None:
        """Measure, write, commit and report the model at the end of an epoch."""
        score = self.measure()
        step = state.global_step
        line = {
            "step": step,
            "valid_loss": score.loss,
            "valid_mean_token_accuracy": score.accuracy,
        }
        self.metrics.append(line)
        self.log_to_tracking(line)
        target = checkpoint.checkpoint_path(self.spec.output_directory, step)
        temporary = manifest.temporary_sibling(target)
        # Loading a model draws random numbers, which training must not miss.
        with torch.random.fork_rng():
            self._write_checkpoint(temporary)
        metadata = self._metadata(state, score)
        committed = checkpoint.commit_checkpoint(temporary, self.spec.output_directory, metadata)
        self.reporter.report("checkpoint", **checkpoint.report_fields(committed))

    def _write_checkpoint(self, temporary: Path) -> None:
        base_model = self.spec.base_checkpoint_path / "model"
        tokenizer = self.codec.tokenizer
        if self.spec.adapter is None:
            adapter.save_tuned(base_model, self.model.state_dict(), temporary / "model")
        else:
            adapter.save_adapter(self.model, temporary / "adapter", self.spec)
            adapter.save_merged(base_model, temporary / "adapter", temporary / "model")
        stream = examples.heldout_stream(
            self.material.heldout, tokenizer.eos_token_id, len(tokenizer)
        )
        (temporary / "evaluation").mkdir()
        np.save(temporary / "evaluation" / "heldout-00000.npy", stream, allow_pickle=False)

    def _metadata(self, state: TrainerState, score: Score) -> dict[str, Any]:
        epoch = state.global_step // self.steps_per_epoch
        trained_tokens = epoch * self.material.training_tokens
        spec = self.spec
        return {
            "model": spec.model,
            "job": spec.job,
            "spec_digest": spec.digest,
            "step": state.global_step,
            "epoch": epoch,
            "final": state.global_step == self.total_steps,
            "tokens_seen": trained_tokens,
            "trained_tokens": trained_tokens,
            "train_loss": self._epoch_loss(state),
            "heldout_loss": score.loss,
            "heldout_accuracy": score.accuracy,
            "base_heldout_loss": self.base_score.loss,
            "base_heldout_accuracy": self.base_score.accuracy,
            "training_examples": len(self.material.training),
            "heldout_examples": len(self.material.heldout),
            "heldout_source": "split" if spec.validation_file_path is None else "validation_file",
            "truncated_examples": self.material.truncated,
            "skipped_examples": self.material.skipped,
            "config": {
                **spec.hyperparameters.model_dump(),
                "adapter": None if spec.adapter is None else spec.adapter.model_dump(mode="json"),
                "maximum_sequence_tokens": self.material.maximum_tokens,
                "precision": str(self.precision).removeprefix("torch."),
                "seed": spec.seed,
            },
            "dataset_digest": spec.training_file_sha256,
            "parent": spec.base_checkpoint_digest,
            "base_version": spec.base_version,
        }

    def _epoch_loss(self, state: TrainerState) -> float:
        """Mean over the steps of the epoch that ends at this step, of each step's mean."""
        first = state.global_step - self.steps_per_epoch
        losses = [e["loss"] for e in state.log_history if "loss" in e and e["step"] > first]
        return math.fsum(losses) / len(losses)

    def log_to_tracking(self, line: dict[str, Any]) -> None:
        if self.tracking is not None:
            metrics = {key: value for key, value in line.items() if key != "step"}
            self.tracking.log(int(line["step"]), metrics)


def resolve_precision(spec: Spec) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, unless ``spec`` says otherwise."""
    if spec.precision != "auto":
        return torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def micro_batch_size(spec: Spec, material: Material) -> int:
    """The most examples that one forward pass takes: a divisor of the batch, within memory."""
    longest = max(len(example.token_ids) for example in (*material.training, *material.heldout))
    limit = max(_MICRO_BATCH_TOKENS // longest, 1)
    batch_size = spec.hyperparameters.batch_size
    return max(size for size in range(1, min(limit, batch_size) + 1) if batch_size % size == 0)


def _dataset(training: Sequence[Example]) -> Dataset:
    columns = {
        "input_ids": [example.token_ids for example in training],
        "labels": [example.labels for example in training],
    }
    return Dataset.from_dict(columns)
