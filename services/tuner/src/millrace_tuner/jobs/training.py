"""One tuning run: what happens around a trainer's steps, whatever its method.

Everything is drawn from the seed: the order of examples, the adapter's first weights and
dropout. On one machine with one number of threads, a run that was killed and resumed ends with
the same bytes as one that was not.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerState, set_seed
from transformers.utils import logging as transformers_logging

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.tracking import Tracking, tracked_experiment
from millrace_tuner.domain import Integration
from millrace_tuner.jobs import adapter, calibration, checkpoint, model_card, parity, zero
from millrace_tuner.jobs.adaptive_rank import RankAllocation
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.forgetting import Forgetting
from millrace_tuner.jobs.metrics import MetricsFile
from millrace_tuner.jobs.objective import Objective
from millrace_tuner.jobs.recorder import Recorder
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import NOT_MERGED
from millrace_tuner.prompt import Prompt

_MICRO_BATCH_TOKENS = 16_384  # what one forward pass holds at most, padding included
_WARMUP_FRACTION = 0.03
_MAXIMUM_GRADIENT_NORM = 1.0


class Run:
    """One tuning: an objective, the model that learns it, and the directory that is written to."""

    def __init__(
        self,
        spec: Spec,
        objective: Objective,
        tokenizer: Any,
        reporter: Reporter,
        cancellation: Cancellation,
    ) -> None:
        self.spec = spec
        self.objective = objective
        self.tokenizer = tokenizer
        self.reporter = reporter
        self.cancellation = cancellation
        self.metrics = MetricsFile(spec.output_directory)
        self.precision = resolve_precision(spec)
        self.micro_batch_size = micro_batch_size(spec, objective.longest_tokens)
        self.steps_per_epoch = objective.steps_per_epoch(spec.hyperparameters.batch_size)
        self.total_steps = self.steps_per_epoch * spec.hyperparameters.epochs
        self.is_stopped_early = False
        self.trainer_directory = manifest.temporary_sibling(spec.output_directory / "trainer")
        self.trainer = self._build_trainer()
        self.forgetting = Forgetting(spec, objective.task)
        with zero.loading_whole(self.trainer):  # before the first step nothing is split yet
            self.base_measured = self._measure()
        self.tracking = self._start_tracking()

    def _build_trainer(self) -> Trainer:
        torch.set_num_threads(self.spec.threads)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        set_seed(self.spec.seed)
        zero.join(self.spec)
        model = self.objective.load_model(self.spec.base_checkpoint_path / "model")
        adapter.prepare(self.spec, model, self.precision)
        trainer = self.objective.build_trainer(self, model)
        zero.require_enabled(trainer, self.spec.hyperparameters.zero_stage)
        held = zero.held_precision(self.spec, self.precision)
        adapter.settle(trainer.model, self.spec.adapter.kind, held)
        # The reporter says it all.
        trainer.remove_callback(PrinterCallback)  # type: ignore[no-untyped-call]
        if self.spec.adapter.kind == "adalora":
            allocation = RankAllocation(self, trainer.model)
            trainer.add_callback(allocation)  # type: ignore[no-untyped-call]
        trainer.add_callback(Recorder(self))  # type: ignore[no-untyped-call]
        return trainer

    def arguments(self) -> dict[str, Any]:
        """``transformers.TrainingArguments`` of every method."""
        given = self.spec.hyperparameters
        return {
            "output_dir": str(self.trainer_directory),
            "num_train_epochs": given.epochs,
            "per_device_train_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": given.batch_size // self.micro_batch_size,
            "learning_rate": self.spec.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": math.ceil(self.total_steps * _WARMUP_FRACTION),
            "weight_decay": 0.0,
            "max_grad_norm": _MAXIMUM_GRADIENT_NORM,
            "bf16": self.precision == torch.bfloat16,
            "fp16": self.precision == torch.float16,
            "gradient_checkpointing": given.gradient_checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "use_cpu": not torch.cuda.is_available(),
            "seed": self.spec.seed,
            "data_seed": self.spec.seed,
            "save_strategy": "epoch",
            "eval_strategy": "no",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "dataloader_pin_memory": False,
            "disable_tqdm": True,
            "report_to": [],
            **zero.arguments(given.zero_stage, self.precision),
        }

    @property
    def model(self) -> Any:
        """The model in training: a ``PeftModel`` around it, unless all of it is tuned."""
        return self.trainer.model

    def _start_tracking(self) -> Tracking | None:
        uri = self.spec.mlflow_tracking_uri
        if uri is None:
            return None
        given = {**asdict(self.spec.hyperparameters), "seed": self.spec.seed}
        given["learning_rate"] = self.spec.learning_rate
        given["method"] = self.spec.method.kind
        given["base_version"] = self.spec.base_version
        wanted = self.spec.integration or Integration("mlflow")
        return Tracking(
            uri,
            self.spec.tracked_as or self.spec.job,
            tracked_experiment(self.spec.tenant, wanted.experiment or self.spec.model),
            given,
            name=self.spec.tracked_as or wanted.run_name,
            tags={"tags": ",".join(wanted.tags), "entity": wanted.entity},
        )

    def train(self) -> None:
        """Train to the end, from the newest state on, committing a checkpoint an epoch.

        Raises:
            JobError: CANCELLED (the state of the last step is committed), TRAINING_DIVERGED.
        """
        state = checkpoint.newest_state(self.spec.output_directory, self.spec.digest)
        self.trainer.train(resume_from_checkpoint=None if state is None else str(state.path))
        if self.tracking is not None:
            self.tracking.close()
        manifest.remove_tree(self.trainer_directory)
        self.cancellation.raise_if_requested()

    def commit_checkpoint(self, state: TrainerState) -> None:
        """Measure, write, commit and report the model at the end of an epoch."""
        measured = self._measure()
        line = {"step": state.global_step, **measured}
        self.metrics.append(line)
        self.log_to_tracking(line)
        best = self._best_before(state.global_step)
        self.is_stopped_early = self._is_stale(best, measured, state)
        metadata = self._metadata(state, measured)
        target = checkpoint.checkpoint_path(self.spec.output_directory, state.global_step)
        temporary = manifest.temporary_sibling(target)
        if metadata["final"] and best is not None and not self._improves(measured, best):
            metadata |= {"valid": best.metadata["valid"], "best_step": best.step}
            metadata |= {"parity": best.metadata["parity"]} if "parity" in best.metadata else {}
            checkpoint.copy_content(best.path, temporary)
        else:
            # Loading a model draws random numbers, which training must not miss.
            with torch.random.fork_rng(), zero.loading_whole(self.trainer):
                self._write_checkpoint(temporary)
                metadata |= parity.metadata_of(parity.certify(self, temporary))
        metadata |= self.forgetting.report(self.base_measured, metadata["valid"])
        model_card.write(self.spec, temporary, metadata)
        committed = checkpoint.commit_checkpoint(temporary, self.spec.output_directory, metadata)
        if self.tracking is not None:
            for card in committed.path.glob(f"*/{model_card.CARD_NAME}"):
                self.tracking.log_file(card, f"step-{state.global_step}")
        self.reporter.report("checkpoint", **checkpoint.report_fields(committed))

    def _measure(self) -> dict[str, float]:
        return {**self.objective.measure(self), **self.forgetting.measure(self)}

    def _best_before(self, step: int) -> Committed | None:
        """The best earlier checkpoint, where the last is not to be the best by itself."""
        if not self.spec.hyperparameters.early_stopping_patience:
            return None
        known = checkpoint.checkpoints(self.spec.output_directory, self.spec.digest)
        best = None
        for committed in known:
            if committed.step < step and (
                best is None or self._improves(committed.metadata["valid"], best)
            ):
                best = committed
        return best

    def _improves(self, measured: dict[str, float], on: Committed) -> bool:
        return self.objective.criterion.is_better(measured, than=on.metadata["valid"])

    def _is_stale(
        self, best: Committed | None, measured: dict[str, float], state: TrainerState
    ) -> bool:
        if best is None or self._improves(measured, best):
            return False
        epochs = (state.global_step - best.step) // self.steps_per_epoch
        return epochs >= self.spec.hyperparameters.early_stopping_patience

    def _write_checkpoint(self, temporary: Path) -> None:
        base_model = self.spec.base_checkpoint_path / "model"
        load = self.objective.load_model
        with zero.whole_weights(self.trainer):
            if self.spec.adapter.kind == "none":
                adapter.save_tuned(load, base_model, self.model.state_dict(), temporary / "model")
            else:
                adapter.save_adapter(self.model, temporary / "adapter", self.spec)
        if self.spec.adapter.kind not in NOT_MERGED | {"none"}:
            adapter.save_merged(load, base_model, temporary / "adapter", temporary / "model")
        stream = self.objective.heldout_stream()
        if stream is not None:
            (temporary / "evaluation").mkdir()
            np.save(temporary / "evaluation" / "heldout-00000.npy", stream, allow_pickle=False)
        rows = self.objective.calibration_rows()
        # An adapter alone is not compressed.
        if rows is not None and stream is not None and (temporary / "model").is_dir():
            calibration.write(
                temporary,
                rows,
                seed=self.spec.seed,
                separator_id=self.tokenizer.eos_token_id,
                dtype=stream.dtype,
            )

    def _metadata(self, state: TrainerState, measured: dict[str, float]) -> dict[str, Any]:
        epoch = state.global_step // self.steps_per_epoch
        of_epoch = self.objective.counts.training_tokens
        trained_tokens = state.num_input_tokens_seen if of_epoch is None else epoch * of_epoch
        spec, counts = self.spec, asdict(self.objective.counts)
        del counts["training_tokens"]
        return {
            "model": spec.model,
            "job": spec.job,
            "spec_digest": spec.digest,
            "step": state.global_step,
            "epoch": epoch,
            "final": self.is_stopped_early or state.global_step == self.total_steps,
            "tokens_seen": trained_tokens,
            "trained_tokens": trained_tokens,
            "train_loss": self._epoch_loss(state),
            "valid": measured,
            "base_valid": self.base_measured,
            **counts,
            "method": asdict(spec.method),
            "config": {
                **asdict(spec.hyperparameters),
                "learning_rate": spec.learning_rate,
                "adapter": asdict(spec.adapter),
                "precision": str(self.precision).removeprefix("torch."),
                "seed": spec.seed,
                "prompt": lineage(spec.prompt),
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


def lineage(prompt: Prompt | None) -> dict[str, Any] | None:
    """What a checkpoint says of the template that its examples were made by."""
    if prompt is None:
        return None
    return {key: value for key, value in asdict(prompt).items() if key != "template"}


def resolve_precision(spec: Spec) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, unless ``spec`` says otherwise.

    Raises:
        JobError: PRECISION_UNSUPPORTED, of float16 without a GPU: PyTorch does not scale its
            gradients there, and the small ones would vanish.
    """
    asked = spec.hyperparameters.precision
    if asked == "float16" and not torch.cuda.is_available():
        message = "precision float16 needs a GPU; on this machine bfloat16 and float32 train"
        raise JobError("PRECISION_UNSUPPORTED", message)
    if asked != "auto":
        dtype: torch.dtype = getattr(torch, asked)
        return dtype
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def micro_batch_size(spec: Spec, longest_tokens: int) -> int:
    """The most examples that one forward pass takes: a divisor of the batch, within memory."""
    limit = max(_MICRO_BATCH_TOKENS // longest_tokens, 1)
    batch_size = spec.hyperparameters.batch_size
    return max(size for size in range(1, min(limit, batch_size) + 1) if batch_size % size == 0)
