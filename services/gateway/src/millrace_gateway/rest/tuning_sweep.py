"""``sweep`` of a fine-tuning job: it trains several times and keeps what did best. Beyond the
OpenAI API.

``parameters`` go by the names that ``method`` has for them; those of the adapter are
``adapter.rank``, ``adapter.alpha`` and ``adapter.dropout``. The tuner says which a method has.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.tuner.v1 import sweep_pb2 as pb
from millrace_gateway.rest.shapes import Int32, Number, RequestBody
from millrace_runtime.errors import InvalidArgument

# Ours by their names in the protos, where those differ.
_PROTO_NAMES = {"n_epochs": "epochs"}
_REST_NAMES = {theirs: ours for ours, theirs in _PROTO_NAMES.items()}


class Range(RequestBody):
    """From ``low`` to ``high``, both included, or ``choices``; ``log``: each doubling is as
    likely as the next."""

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: Annotated[list[Number], Field(min_length=1)] | None = None


class Sweep(RequestBody):
    """Without ``parameters``: the learning rate's multiplier and the adapter's rank."""

    trials: Int32
    parameters: dict[str, Range] | None = None
    metric: Annotated[
        str | None, Field(description="What decides, such as `valid_loss`; the method has its own.")
    ] = None
    direction: Literal["minimize", "maximize"] | None = None
    pruning: bool | None = None
    patience: Int32 | None = None


def sweep_message(sweep: Sweep | None) -> pb.Sweep | None:
    """
    Raises:
        InvalidArgument: a parameter is given by both of its names.
    """
    if sweep is None:
        return None
    parameters: dict[str, pb.Range] = {}
    for name, values in (sweep.parameters or {}).items():
        theirs = _PROTO_NAMES.get(name, name)
        if theirs in parameters:
            raise InvalidArgument(
                f"{name} is given twice, by two names", field=f"sweep.parameters.{name}"
            )
        parameters[theirs] = _range(values)
    return pb.Sweep(
        trials=sweep.trials,
        parameters=parameters,
        metric=sweep.metric or "",
        direction=sweep.direction or "",
        pruning=sweep.pruning,
        patience=sweep.patience or 0,
    )


def _range(values: Range) -> pb.Range:
    return pb.Range(low=values.low, high=values.high, log=values.log, choices=values.choices or [])


def sweep_object(message: pb.Sweep) -> dict[str, Any]:
    """What a job says of its sweep, every choice as it was made or resolved."""
    ranges = message.parameters
    return {
        "trials": message.trials,
        "parameters": {_REST_NAMES.get(name, name): _values(ranges[name]) for name in ranges},
        "metric": message.metric,
        "direction": message.direction,
        "pruning": message.pruning,
        "patience": message.patience,
    }


def _values(message: pb.Range) -> dict[str, Any]:
    if message.choices:
        return {"choices": list(message.choices)}
    return {"low": message.low, "high": message.high, "log": message.log}


def sweep_fields(sweep: Sweep | None) -> Mapping[str, str]:
    """Where the protos' fields stand in a request, for errors that name them."""
    if sweep is None:
        return {}
    places = {}
    for ours, theirs in _PROTO_NAMES.items():
        for part in ("", ".low"):
            places[f"sweep.parameters.{theirs}{part}"] = f"sweep.parameters.{ours}{part}"
    return places
