"""A sweep: ``python -m millrace_tuner.jobs.sweep``.

Trains several times by the job's method, each time with other values and in a process of its
own, and makes the checkpoints of the trial that did best its own. Started again with the same
specification, it goes on with the trial in hand, which goes on from its last state.

Lines on standard output (``millrace_runtime.jobs``): ``progress`` in the phase "sweep" (trials;
metrics are those of the trial in hand, its number, its own progress, and the best value yet),
``state`` (of the trial in hand), ``trial`` (every one that has ended, also those of a killed
predecessor, and the one that was promoted), ``checkpoint`` (those of the best trial, at the
end), ``result`` (that of the best trial, and ``trials``).

Reasons of failure: those of the method, of which a diverging trial fails only itself, and
SWEEP_METRIC_UNKNOWN, SWEEP_FAILED.
"""

import math
from pathlib import Path
from typing import Any

from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.work import run_job
from millrace_tuner.jobs import checkpoint, flow
from millrace_tuner.jobs.metrics import METRICS_NAME
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.sweep_ledger import Ledger, Trial
from millrace_tuner.jobs.sweep_search import Search
from millrace_tuner.jobs.sweep_trial import (
    RunJob,
    Stop,
    TrialRun,
    setting_of,
    trial_directory,
    trial_spec,
)


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; SIGTERM stops it between two steps of the trial in hand."""
    stop = Stop()
    stop.listen()
    perform(spec, reporter, stop, run_job)


def perform(spec: Spec, reporter: Reporter, stop: Stop, run: RunJob) -> None:
    """Try what is left to try, and report the best; ``run`` runs one training."""
    if spec.sweep is None:
        raise JobError("INVALID_SPEC", "sweep must be given")
    spec.output_directory.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(spec.output_directory, spec.digest, spec.sweep)
    search = Search(spec.sweep, setting_of(spec), spec.seed)
    for trial in ledger.ended:
        _tell(spec, reporter, ledger, trial)
    while not ledger.is_over:
        _try(spec, reporter, ledger, search, stop, run)
    _promote(spec, reporter, ledger)


def _try(
    spec: Spec, reporter: Reporter, ledger: Ledger, search: Search, stop: Stop, run: RunJob
) -> None:
    """Take the trial in hand, or a new one, to its end."""
    trial = ledger.running
    if trial is None:
        trial = Trial(len(ledger.trials) + 1, search.propose(ledger.ended))
        ledger.trials.append(trial)
        ledger.save()
    TrialRun(spec, trial, ledger, search, reporter, stop, run).perform()
    ledger.save()
    _tell(spec, reporter, ledger, trial)
    for other in ledger.ended:
        if other is not ledger.best:
            _remove(spec, other)


def _tell(spec: Spec, reporter: Reporter, ledger: Ledger, trial: Trial, state: str = "") -> None:
    assert spec.sweep is not None, "work has checked it"
    reporter.report(
        "trial",
        trial=trial.number,
        trials=spec.sweep.trials,
        parameters=trial.parameters,
        state=state or trial.state,
        metric=spec.sweep.metric,
        value=trial.value,
        is_best=ledger.is_best_so_far(trial),
        message=trial.message,
    )


def _promote(spec: Spec, reporter: Reporter, ledger: Ledger) -> None:
    """Make the best trial's checkpoints the job's, and report the result."""
    best = ledger.best
    if best is None:
        last = ledger.trials[-1].message
        message = f"none of {len(ledger.trials)} trials came to its end; the last one: {last}"
        raise JobError("SWEEP_FAILED", message)
    output = spec.output_directory
    _move(trial_directory(spec, best), output)
    promoted = trial_spec(spec, best).model_copy(update={"output_directory": output})
    known = checkpoint.checkpoints(output, promoted.digest)
    for committed in known:
        reporter.report("checkpoint", **checkpoint.report_fields(committed))
    _tell(spec, reporter, ledger, best, state="promoted")
    for trial in ledger.trials:
        _remove(spec, trial)
    fields = flow.result_fields(promoted, known[-1])
    fields["trained_tokens"] = sum(trial.trained_tokens for trial in ledger.trials)
    reporter.report("result", **fields, trials=[_row(trial, best) for trial in ledger.trials])


def _move(trial: Path, output: Path) -> None:
    """Everything that a job leaves, one rename a piece: what was moved before a crash stays."""
    for path in sorted(trial.glob("checkpoint-*")):
        path.rename(output / path.name)
    if (trial / METRICS_NAME).exists():
        (trial / METRICS_NAME).replace(output / METRICS_NAME)
    manifest.fsync_path(output)


def _remove(spec: Spec, trial: Trial) -> None:
    manifest.remove_tree(trial_directory(spec, trial))


def _row(trial: Trial, best: Trial) -> dict[str, Any]:
    measured = {name: value for name, value in trial.measured.items() if math.isfinite(value)}
    return {
        "trial": trial.number,
        "state": trial.state,
        "is_best": trial is best,
        "parameters": trial.parameters,
        "measured": measured,
        "last_epoch": max(trial.values, default=0),
        "trained_tokens": trial.trained_tokens,
        "seconds": round(trial.seconds, 1),
    }


if __name__ == "__main__":
    jobs.run("tuner.sweep", Spec, work, lambda spec: spec.output_directory)
