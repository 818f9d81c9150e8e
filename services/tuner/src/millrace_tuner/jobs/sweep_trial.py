"""One trial of a sweep: the job's own method, in a process of its own, heard to its end.

A process a trial, as training holds what it has allocated and seeds what the process shares.
"""

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped
from millrace_tuner import hyperparameters
from millrace_tuner import sweep as sweeps
from millrace_tuner.job_specification import MODULES
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.sweep_ledger import Ledger, Trial
from millrace_tuner.jobs.sweep_search import Search
from millrace_tuner.sweep import Setting, Sweep

RunJob = Callable[
    [str, dict[str, Any], Path, Callable[[dict[str, Any]], None], threading.Event], JobOutcome
]
"""As ``millrace_runtime.work.run_job``."""

_CRASHES = frozenset(("CRASHED", "INTERNAL"))
_TRIES = 2  # of a trial that crashes: the second tells a machine's mishap from too large values
_DIVERGED = "TRAINING_DIVERGED"


class Stop:
    """SIGTERM to a sweep, handed on to the trial in hand."""

    def __init__(self) -> None:
        self.requested = False
        self.trial = threading.Event()

    def listen(self) -> None:
        """Take SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self.trial.set()

    def next_trial(self) -> threading.Event:
        """What ends the trial that is about to run."""
        self.trial = threading.Event()
        if self.requested:
            self.trial.set()
        return self.trial


def setting_of(spec: Spec) -> Setting:
    return Setting(spec.method, spec.hyperparameters, spec.adapter)


def trial_directory(spec: Spec, trial: Trial) -> Path:
    return spec.output_directory / f"trial-{trial.number:03d}"


def trial_spec(spec: Spec, trial: Trial) -> Spec:
    """What a job is told that trains once, with the trial's values."""
    setting = sweeps.with_values(setting_of(spec), trial.parameters)
    rate = hyperparameters.learning_rate(setting.method, setting.adapter, setting.hyperparameters)
    return spec.model_copy(
        update={
            "method": setting.method,
            "hyperparameters": setting.hyperparameters,
            "adapter": setting.adapter,
            "learning_rate": rate,
            "output_directory": trial_directory(spec, trial),
            "tracked_as": f"{spec.job}-trial-{trial.number:03d}",
            "sweep": None,
        }
    )


class TrialRun:
    """Runs one trial and writes down what it says."""

    def __init__(
        self,
        spec: Spec,
        trial: Trial,
        ledger: Ledger,
        search: Search,
        reporter: Reporter,
        stop: Stop,
        run: RunJob,
    ) -> None:
        assert spec.sweep is not None, "the job has checked it"
        self._spec = spec
        self._sweep: Sweep = spec.sweep
        self._trial = trial
        self._ledger = ledger
        self._search = search
        self._reporter = reporter
        self._stop = stop
        self._run_job = run
        self._ending: threading.Event = stop.trial
        self._is_hopeless = False
        self._started_seconds = time.monotonic() - trial.seconds

    def perform(self) -> None:
        """
        Raises:
            JobError: CANCELLED, SWEEP_METRIC_UNKNOWN, or what is wrong with every trial.
        """
        outcome = self._run()
        trial = self._trial
        trial.seconds = time.monotonic() - self._started_seconds
        if self._is_hopeless:
            trial.state = "pruned"
        elif isinstance(outcome, JobResult):
            trial.state = "finished"
        elif isinstance(outcome, JobStopped):
            message = "stopped on request; started again, it goes on with the trial in hand"
            raise JobError("CANCELLED", message)
        else:
            self._fail(outcome)
        if not all(map(math.isfinite, trial.values.values())):
            self._diverge(f"its {self._sweep.metric} is not a number")

    def _run(self) -> JobOutcome:
        spec = trial_spec(self._spec, self._trial)
        directory = trial_directory(self._spec, self._trial)
        for _ in range(_TRIES):
            self._ending = self._stop.next_trial()
            module = MODULES[spec.method.kind]
            told = spec.model_dump(mode="json")
            outcome = self._run_job(module, told, directory, self._hear, self._ending)
            if not (isinstance(outcome, JobFailure) and outcome.reason in _CRASHES):
                return outcome
        return outcome

    def _fail(self, failure: JobFailure) -> None:
        """A trial's values may be at fault for what happened to it, or the job's own."""
        if failure.reason == _DIVERGED:
            self._diverge(failure.message)
        elif failure.reason in _CRASHES:
            self._trial.state, self._trial.message = "failed", failure.message
        else:
            raise JobError(failure.reason, failure.message)

    def _diverge(self, message: str) -> None:
        self._trial.state, self._trial.message = "diverged", message
        self._trial.values, self._trial.measured = {}, {}

    def _hear(self, message: dict[str, Any]) -> None:
        if self._is_hopeless:
            return  # what it still says before it ends must not decide anything
        if message["kind"] == "checkpoint":
            self._measure(message)
        elif message["kind"] == "state":
            self._reporter.report("state", step=message["step"])
        elif message["kind"] == "progress":
            self._forward(message)

    def _measure(self, message: dict[str, Any]) -> None:
        trial, metric, measured = self._trial, self._sweep.metric, message["metrics"]
        if metric not in measured:
            raise JobError(
                "SWEEP_METRIC_UNKNOWN",
                f"the method {self._spec.method.kind!r} does not measure {metric}; it measures "
                f"{', '.join(sorted(measured))}",
            )
        trial.values[int(message["epoch"])] = measured[metric]
        trial.measured, trial.trained_tokens = measured, message["trained_tokens"]
        self._ledger.save()
        if self._sweep.pruning and not message["final"]:
            self._is_hopeless = self._search.is_hopeless(trial, self._ledger.ended)
            if self._is_hopeless:
                self._ending.set()

    def _forward(self, message: dict[str, Any]) -> None:
        metrics = {
            **message["metrics"],
            "trial": float(self._trial.number),
            "trial_completed": float(message["completed"]),
            "trial_total": float(message["total"]),
        }
        best = self._ledger.best
        if best is not None and best.value is not None:
            metrics[f"best_{self._sweep.metric}"] = best.value
        left = metrics.pop("remaining_seconds", None)
        if left is not None:
            metrics["remaining_seconds"] = self._remaining_seconds(left)
        ended = len(self._ledger.ended)
        self._reporter.progress("sweep", ended, self._sweep.trials, metrics)

    def _remaining_seconds(self, of_trial: float) -> float:
        """Of the whole sweep, if the trials to come take as long as those so far."""
        taken = [trial.seconds for trial in self._ledger.ended]
        taken.append(time.monotonic() - self._started_seconds + of_trial)
        left = self._sweep.trials - self._trial.number
        return of_trial + left * sum(taken) / len(taken)
