"""Which settings to try next.

The tree-structured Parzen estimator proposes: Bergstra et al. 2011, "Algorithms for
Hyper-Parameter Optimization"; as in Optuna (https://optuna.readthedocs.io).
"""

import random
from dataclasses import asdict

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial

from millrace_registry.tuning.space import Candidate, Space

_AT_RANDOM = 4
_PROPOSALS = 20


class Search:
    """Proposes each candidate once; the same seed and scores lead to the same candidates."""

    def __init__(self, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._random = random.Random(seed)
        sampler = optuna.samplers.TPESampler(n_startup_trials=_AT_RANDOM, seed=seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(tuple(values)) for name, values in space.choices.items()
        }
        self._left = dict.fromkeys(space.all())

    def next(self) -> Candidate | None:
        """A candidate that was not proposed before; None: there is none."""
        if not self._left:
            return None
        for _ in range(_PROPOSALS):
            asked = self._study.ask(self._distributions)
            proposed = Candidate(**asked.params)
            # Never told of: the sampler learns from what was measured alone.
            self._study.tell(asked, state=TrialState.FAIL)
            if proposed in self._left:
                break
        else:
            proposed = self._random.choice(list(self._left))
        del self._left[proposed]
        return proposed

    def tell(self, candidate: Candidate, score: float) -> None:
        """What came of a candidate, proposed here or not."""
        self._left.pop(candidate, None)
        given = asdict(candidate)
        if any(value not in self._space.choices[name] for name, value in given.items()):
            return
        self._study.add_trial(
            create_trial(params=given, distributions=self._distributions, value=score)
        )
