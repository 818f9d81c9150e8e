"""The trials of a sweep, as its job says them, in words and as a table. Pure."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from millrace_tuner.domain import JobEvent

_FIRST_COLUMNS = ("trial", "state", "is_best")
_LAST_COLUMNS = ("last_epoch", "trained_tokens", "seconds")


def event(message: Mapping[str, Any]) -> JobEvent:
    """What is told of a trial that ended, or that became the job's result."""
    number, metric, value = message["trial"], message["metric"], message["value"]
    of = f"Trial {number}/{message['trials']}"
    figures = {"trial": float(number), **message["parameters"]}
    if value is not None:
        figures[metric] = value
    if message["state"] == "promoted":
        told = f"{of} is the best, with {metric}={value:.4g}: its checkpoints are the job's"
        return JobEvent(told, key="promoted", metrics=figures)
    tried = ", ".join(f"{name}={value:.4g}" for name, value in message["parameters"].items())
    is_bad = message["state"] in ("diverged", "failed")
    return JobEvent(
        f"{of}: {tried}: {_ending(message)}",
        key=f"trial-{number}",
        level="warn" if is_bad else "info",
        metrics=figures,
    )


def _ending(message: Mapping[str, Any]) -> str:
    metric, value = message["metric"], message["value"]
    match message["state"]:
        case "finished":
            best = ", the best so far" if message["is_best"] else ""
            return f"{metric}={value:.4g}{best}"
        case "pruned":
            return f"ended early, as {metric}={value:.4g} was worse than half of the others had"
        case state:
            return f"{state}, {message['message']}"


def to_csv(trials: Sequence[Mapping[str, Any]]) -> bytes:
    """One row a trial: what was tried and what was measured; a cell is empty where nothing was."""
    parameters = sorted({name for trial in trials for name in trial["parameters"]})
    measured = sorted({name for trial in trials for name in trial["measured"]})
    columns = [*_FIRST_COLUMNS, *parameters, *measured, *_LAST_COLUMNS]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**t, **t["parameters"], **t["measured"]} for t in trials)
    return text.getvalue().encode()
