"""What a job found out about its model, as its user is told when training has ended. Pure."""

from collections.abc import Mapping
from typing import Any

from millrace_tuner.domain import JobEvent

_FORGETTING = "valid_base_loss"


def findings(result: Mapping[str, Any]) -> tuple[JobEvent, ...]:
    """From a job's ``result`` line: what was measured before and after, what was forgotten of the
    base's own data, and how far adapter and merged model are from the model in training."""
    before, after = result.get("base_valid", {}), result.get("valid", {})
    both = [name for name in after if name in before]
    found = []
    if learned := [name for name in both if name != _FORGETTING]:
        message = f"On the held-out examples, before and after: {_changes(learned, before, after)}"
        found.append(JobEvent(message, key="learned", metrics=_metrics(learned, before, after)))
    if _FORGETTING in both:
        message = (
            "On held-out text of the base's own data, the loss was "
            f"{before[_FORGETTING]:.3f} before and is {after[_FORGETTING]:.3f} after"
        )
        measured = _metrics([_FORGETTING], before, after)
        found.append(JobEvent(message, key="forgotten", metrics=measured))
    if parity := result.get("parity"):
        stages = ", ".join(f"{name.removeprefix('parity_')} {d:.2g}" for name, d in parity.items())
        message = f"Parity with the model in training, largest differences of log p: {stages}"
        found.append(JobEvent(message, key="parity", metrics=parity))
    return tuple(found)


def _changes(names: list[str], before: Mapping[str, float], after: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name.removeprefix('valid_').replace('_', ' ')} {before[name]:.3f} -> {after[name]:.3f}"
        for name in names
    )


def _metrics(
    names: list[str], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, float]:
    return {
        f"{name}_{when}": values[name]
        for when, values in (("before", before), ("after", after))
        for name in names
    }
