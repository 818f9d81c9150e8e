"""What a sweep may be told, and what it is when that is not said. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millrace_runtime.errors import InvalidArgument
from millrace_tuner import adapter_rules, methods, sweep
from millrace_tuner.methods import FEWEST_FOR_KTO, Adapter
from millrace_tuner.sweep import Range, Setting, Sweep

_CHOSEN_BY_ZERO = frozenset(
    ("epochs", "batch_size", "learning_rate_multiplier", "adapter.rank", "adapter.alpha")
)


def resolve(asked: Sweep | None, setting: Setting) -> Sweep | None:
    """``asked`` with a space and an objective where it has none; parameters in order of name.

    Raises:
        InvalidArgument: naming the field: a parameter that there is not or that has no effect, a
            range without values, an objective whose direction is not known.
    """
    if asked is None:
        return None
    parameters = asked.parameters or sweep.default_parameters(setting.adapter)
    for name, values in parameters.items():
        _require_known(name, setting)
        _require_values(name, values, setting)
    _require_agreement(parameters, setting)
    metric, direction = sweep.objective(setting.method)
    if asked.metric and asked.metric != metric and not asked.direction:
        raise InvalidArgument(
            f"say whether {asked.metric} is to be minimized or maximized",
            field="sweep.direction",
        )
    return replace(
        asked,
        parameters=dict(sorted(parameters.items())),
        metric=asked.metric or metric,
        direction=asked.direction or direction,
    )


def _require_known(name: str, setting: Setting) -> None:
    known = sweep.parameters_of(setting.method)
    if name not in known:
        raise _mistake(
            name,
            f"a job of the method {setting.method.kind!r} has no number {name!r}; there is "
            f"{', '.join(known)}",
        )
    if name.startswith("adapter."):
        wanted = Adapter(setting.adapter.kind, rank=0, alpha=0.0, virtual_tokens=0)
        used: dict[str, Any] = {name.removeprefix("adapter."): 1}
        wanted = replace(wanted, **used)
        found = adapter_rules.adapter_mistake(wanted)
        if found is not None:
            raise _mistake(name, f"the adapter {found[1]}")


def _require_values(name: str, values: Range, setting: Setting) -> None:
    if values.choices:
        if values.low is not None or values.high is not None or values.log:
            raise _mistake(name, f"give {name} choices, or low and high, not both")
        if len(values.choices) < 2:
            raise _mistake(name, f"{name} has a single choice; there is nothing to try")
    elif values.low is None or values.high is None:
        raise _mistake(name, f"give {name} low and high, or choices")
    elif values.low >= values.high:
        raise _mistake(name, f"low of {name} must be less than high", "low")
    elif values.log and values.low <= 0:
        raise _mistake(name, f"low of {name} must be above 0 where log is true", "low")
    _require_meaning(name, values, setting)


def _require_meaning(name: str, values: Range, setting: Setting) -> None:
    is_whole = sweep.parameters_of(setting.method)[name] is int
    least = min(values.corners)
    if is_whole and any(value != int(value) for value in values.corners):
        raise _mistake(name, f"{name} takes whole numbers only")
    if name in _CHOSEN_BY_ZERO and least <= 0:
        raise _mistake(name, f"{name} must be above 0")
    if name == "batch_size" and setting.method.kind == "kto" and least < FEWEST_FOR_KTO:
        raise _mistake(name, f"batch_size of the method 'kto' is {FEWEST_FOR_KTO} at least")


def _require_agreement(parameters: Mapping[str, Range], setting: Setting) -> None:
    for name, values in parameters.items():
        for value in values.corners:
            tried = sweep.with_values(setting, {name: value})
            message = methods.contradiction(tried.method)
            if message is not None:
                raise _mistake(name, message)


def _mistake(name: str, message: str, part: str = "") -> InvalidArgument:
    field = f"sweep.parameters.{name}"
    return InvalidArgument(message, field=f"{field}.{part}" if part else field)
