"""A sweep: a job that trains several times, each time with other values, and keeps what did best.

Standard library only: the service fixes a sweep in a job's plan, and the job's subprocess reads
the same values from its specification.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from millrace_tuner.methods import LOW_RANK, Adapter, Hyperparameters, Method

Direction = Literal["minimize", "maximize"]

_HYPERPARAMETERS: Mapping[str, type] = {
    "epochs": int,
    "batch_size": int,
    "learning_rate_multiplier": float,
}
_ADAPTER: Mapping[str, type] = {
    "adapter.rank": int,
    "adapter.alpha": float,
    "adapter.dropout": float,
}
# They say how a model is measured: trials with other values could not be compared.
_MEASURING = frozenset(("evaluation_samples", "evaluation_interval"))
_RATE, _RANK = "learning_rate_multiplier", "adapter.rank"

_OBJECTIVES: Mapping[str, tuple[str, Direction]] = {
    "reinforcement": ("valid_reward_mean", "maximize"),
    "ppo": ("valid_reward_mean", "maximize"),
}
_OBJECTIVE: tuple[str, Direction] = ("valid_loss", "minimize")


@dataclass(frozen=True)
class Range:
    """The values that a parameter may have: ``choices``, or from ``low`` to ``high``, both
    included; ``log``: each doubling is as likely as the next."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[float, ...] = ()

    @property
    def corners(self) -> tuple[float, ...]:
        """The values between which, or of which, all others are."""
        return self.choices or tuple(end for end in (self.low, self.high) if end is not None)

    def holds(self, value: float) -> bool:
        if self.choices:
            return value in self.choices
        return self.low is not None and self.high is not None and self.low <= value <= self.high


@dataclass(frozen=True)
class Sweep:
    """What is tried, and what decides.

    Attributes:
        trials: times that the job trains, at most.
        parameters: by their names (``parameters_of``).
        metric: as a checkpoint's metrics call it.
        pruning: whether a trial that does worse than half of the earlier ones did at its epoch
            ends there.
        patience: trials in a row that are no better than the best until the sweep ends; 0: never.
    """

    trials: int
    parameters: Mapping[str, Range]
    metric: str
    direction: Direction
    pruning: bool = True
    patience: int = 0

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.direction == "maximize" else value < than


@dataclass(frozen=True)
class Setting:
    """What one trial trains with."""

    method: Method
    hyperparameters: Hyperparameters
    adapter: Adapter


def objective(method: Method) -> tuple[str, Direction]:
    """The metric that decides between two models of a method, unless its user says another."""
    return _OBJECTIVES.get(method.kind, _OBJECTIVE)


def parameters_of(method: Method) -> dict[str, type]:
    """Everything that a sweep may try, by name: ``int`` or ``float``."""
    hints = typing.get_type_hints(type(method))
    own = {
        name: hint
        for name, hint in hints.items()
        if hint in (int, float) and name not in _MEASURING
    }
    return {**_HYPERPARAMETERS, **_ADAPTER, **own}


def default_parameters(adapter: Adapter) -> dict[str, Range]:
    """What is tried when nothing else is said."""
    space = {_RATE: Range(0.1, 10.0, log=True)}
    if adapter.kind in LOW_RANK or adapter.kind == "bottleneck":
        space[_RANK] = Range(4, 64, log=True)
    return space


def value_of(setting: Setting, name: str) -> float:
    """The value that a parameter has."""
    if name in _HYPERPARAMETERS:
        return float(getattr(setting.hyperparameters, name))
    if name in _ADAPTER:
        return float(getattr(setting.adapter, name.removeprefix("adapter.")))
    return float(getattr(setting.method, name))


def with_values(setting: Setting, values: Mapping[str, float]) -> Setting:
    """``setting`` with other values. A rank that changes takes alpha with it, unless that is
    tried too: what the adapter adds keeps its scale."""
    kinds = parameters_of(setting.method)
    typed = {name: kinds[name](value) for name, value in values.items()}
    common = {name: value for name, value in typed.items() if name in _HYPERPARAMETERS}
    adapted = {
        name.removeprefix("adapter."): value for name, value in typed.items() if name in _ADAPTER
    }
    own = {
        name: value
        for name, value in typed.items()
        if name not in _HYPERPARAMETERS and name not in _ADAPTER
    }
    if "rank" in adapted and "alpha" not in adapted:
        adapted["alpha"] = setting.adapter.alpha / setting.adapter.rank * adapted["rank"]
    return Setting(
        replace(setting.method, **own),
        replace(setting.hyperparameters, **common),
        replace(setting.adapter, **adapted),
    )
