"""Which values a trial takes, and which trial is given up: Optuna's sampler and pruner.

The search keeps no state of its own: it follows from the seed and the trials before, so that a
sweep that was killed and resumed tries the same as one that was not.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from millrace_tuner import sweep as sweeps
from millrace_tuner.jobs.sweep_ledger import Trial
from millrace_tuner.sweep import Range, Setting, Sweep

_MOST_AT_RANDOM = 10
_STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,  # as bad as any; the sampler keeps away from it
    "failed": TrialState.FAIL,
}


class Search:
    """Proposes values by a tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms
    for Hyper-Parameter Optimization"), and gives up trials below the median (Golovin et al. 2017,
    "Google Vizier")."""

    def __init__(self, sweep: Sweep, setting: Setting, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        self._setting = setting
        self._seed = seed
        self._kinds = sweeps.parameters_of(setting.method)
        self._space = {
            name: _distribution(values, self._kinds[name])
            for name, values in sweep.parameters.items()
        }
        # A third at random, so that also a short sweep learns from what it sees.
        self._at_random = min(_MOST_AT_RANDOM, max(2, sweep.trials // 3))

    def propose(self, ended: Sequence[Trial]) -> dict[str, float]:
        """The values of the next trial. The first tries what the job would do without a sweep,
        as far as the space holds it."""
        study = self._study(ended)
        if not ended:
            study.enqueue_trial(self._present())
        return dict(study.ask(self._space).params)

    def is_hopeless(self, trial: Trial, ended: Sequence[Trial]) -> bool:
        """Whether its best value so far is worse than the median of the others' at its epoch."""
        study = self._study(ended)
        study.enqueue_trial(trial.parameters)
        asked = study.ask(self._space)
        for epoch, value in trial.values.items():
            asked.report(value, epoch)
        return asked.should_prune()

    def _present(self) -> dict[str, float]:
        present = {}
        for name, values in self._sweep.parameters.items():
            value = sweeps.value_of(self._setting, name)
            if values.holds(value):
                present[name] = self._kinds[name](value)
        return present

    def _study(self, ended: Sequence[Trial]) -> optuna.Study:
        digest = hashlib.sha256(f"{self._seed}/{len(ended)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        study = optuna.create_study(
            direction=self._sweep.direction,
            sampler=optuna.samplers.TPESampler(n_startup_trials=self._at_random, seed=seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self._at_random),
        )
        study.add_trials([self._frozen(trial) for trial in ended])
        return study

    def _frozen(self, trial: Trial) -> Any:
        state = _STATES[trial.state]
        return create_trial(
            state=state,
            params=trial.parameters,
            distributions=self._space,
            value=trial.value if state == TrialState.COMPLETE else None,
            intermediate_values=trial.values,
        )


def _distribution(values: Range, kind: type) -> BaseDistribution:
    if values.choices:
        return CategoricalDistribution([kind(choice) for choice in values.choices])
    assert values.low is not None and values.high is not None, "the service has checked it"
    if kind is int:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)
