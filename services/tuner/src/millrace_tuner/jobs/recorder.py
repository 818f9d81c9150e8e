"""What happens between the trainer's steps, through the hooks that it offers."""

import math
import time
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.metrics import MetricsFile, step_line
from millrace_tuner.jobs.objective import Objective
from millrace_tuner.jobs.specification import Spec

_SMOOTHING = 0.1  # weight of the newest step in the mean time of a step


class RecordedRun(Protocol):
    """What the recorder needs of a run (``training.Run``)."""

    spec: Spec
    reporter: Reporter
    cancellation: Cancellation
    metrics: MetricsFile
    steps_per_epoch: int
    total_steps: int
    is_stopped_early: bool
    objective: Objective
    trainer_directory: Path

    def commit_checkpoint(self, state: TrainerState) -> None: ...
    def log_to_tracking(self, line: dict[str, Any]) -> None: ...


class Recorder(TrainerCallback):
    """What a run does between the trainer's steps: report, save its state, stop when asked."""

    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        self._last_state_seconds = time.monotonic()
        self._last_log_seconds = time.monotonic()
        self._tokens_logged = 0.0
        self._step_seconds: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Bring the directory up to the state that training starts from."""
        run = self._run
        known = checkpoint.checkpoints(run.spec.output_directory, run.spec.digest)
        names = run.objective.names
        steps = [step_line(entry, names) for entry in state.log_history if "loss" in entry]
        between = [entry for entry in state.log_history if _is_measured(entry)]
        run.metrics.rewrite(steps + between + [_validation_line(c) for c in known])
        at_epoch_end = state.global_step > 0 and state.global_step % run.steps_per_epoch == 0
        if at_epoch_end and state.global_step not in {c.step for c in known}:
            run.commit_checkpoint(state)
        self._last_state_seconds = self._last_log_seconds = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run = self._run
        if run.cancellation.requested or run.is_stopped_early:
            control.should_training_stop = True
        if state.global_step % run.steps_per_epoch == 0:
            return  # the end of the epoch saves by itself
        since_state = time.monotonic() - self._last_state_seconds
        overdue = since_state >= run.spec.state_interval_seconds
        control.should_save = overdue or run.cancellation.requested

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The trainer's own callback asks for a save here, even when the epoch was broken off."""
        at_epoch_end = state.global_step % self._run.steps_per_epoch == 0
        control.should_save = at_epoch_end

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return  # the trainer's closing summary
        line = step_line({**logs, "step": state.global_step}, self._run.objective.names)
        if not math.isfinite(line["train_loss"]):
            raise JobError(
                "TRAINING_DIVERGED",
                f"the loss at step {state.global_step} is not a number; lower the learning rate "
                f"(now {self._run.spec.learning_rate:g})",
            )
        self._run.metrics.append(line)
        self._run.log_to_tracking(line)
        metrics = {key: value for key, value in line.items() if key != "step"}
        metrics |= self._pace(logs.get("num_tokens"), self._run.total_steps - state.global_step)
        self._run.reporter.progress("train", state.global_step, self._run.total_steps, metrics)

    def _pace(self, tokens: float | None, steps_left: int) -> dict[str, float]:
        """How fast it goes, and how long it will; ``tokens`` is what the trainer has counted."""
        now = time.monotonic()
        taken = max(now - self._last_log_seconds, 1e-9)
        self._last_log_seconds = now
        former = taken if self._step_seconds is None else self._step_seconds
        self._step_seconds = (1 - _SMOOTHING) * former + _SMOOTHING * taken
        pace = {"remaining_seconds": steps_left * self._step_seconds}
        if tokens is not None:
            pace["tokens_per_second"] = (tokens - self._tokens_logged) / taken
            self._tokens_logged = tokens
        return pace

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        run, step = self._run, state.global_step
        written = run.trainer_directory / f"checkpoint-{step}"
        checkpoint.commit_state(written, run.spec.output_directory, step, run.spec.digest)
        run.reporter.report("state", step=step)
        if step % run.steps_per_epoch == 0:
            run.commit_checkpoint(state)
            control.should_training_stop |= run.is_stopped_early
        self._last_state_seconds = self._last_log_seconds = time.monotonic()


def _validation_line(committed: Committed) -> dict[str, Any]:
    return {"step": committed.step, **committed.metadata["valid"]}


def _is_measured(entry: dict[str, Any]) -> bool:
    """Whether it is what a method measured between two checkpoints."""
    return any(name.startswith("valid_") for name in entry)
