"""Sweeps: proto messages to values of the domain and back."""

from typing import cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import sweep_pb2
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import check
from millrace_tuner.sweep import Direction, Range, Sweep

_NUMBERS = {FieldDescriptor.CPPTYPE_INT32: int, FieldDescriptor.CPPTYPE_DOUBLE: float}


def sweep_from_proto(request: pb.CreateJobRequest) -> Sweep | None:
    """What a request asks for; an empty metric or direction is the method's own.

    Raises:
        InvalidArgument: naming the parameter that may not have one of its values.
    """
    if not request.HasField("sweep"):
        return None
    asked = request.sweep
    parameters = {name: _range(values) for name, values in asked.parameters.items()}
    for name, values in parameters.items():
        for value in values.corners:
            _require_allowed(request, name, value)
    return Sweep(
        trials=asked.trials,
        parameters=parameters,
        metric=asked.metric,
        direction=cast(Direction, asked.direction),
        pruning=asked.pruning if asked.HasField("pruning") else True,
        patience=asked.patience,
    )


def sweep_to_proto(sweep: Sweep) -> sweep_pb2.Sweep:
    return sweep_pb2.Sweep(
        trials=sweep.trials,
        parameters={name: _range_to_proto(values) for name, values in sweep.parameters.items()},
        metric=sweep.metric,
        direction=sweep.direction,
        pruning=sweep.pruning,
        patience=sweep.patience,
    )


def _range(values: sweep_pb2.Range) -> Range:
    return Range(
        low=values.low if values.HasField("low") else None,
        high=values.high if values.HasField("high") else None,
        log=values.log,
        choices=tuple(values.choices),
    )


def _range_to_proto(values: Range) -> sweep_pb2.Range:
    return sweep_pb2.Range(low=values.low, high=values.high, log=values.log, choices=values.choices)


def _require_allowed(request: pb.CreateJobRequest, name: str, value: float) -> None:
    """That a job with this value could be asked for: the rules are those of the method."""
    method = method_pb.Method()
    method.CopyFrom(request.method)
    kind = method.WhichOneof("kind") or "supervised"
    getattr(method, kind).SetInParent()
    part, _, last = name.rpartition(".")
    places = (method.adapter,) if part else (method.hyperparameters, getattr(method, kind))
    try:
        for place in places:
            _set(place, last, value)
        check(method)
    except (InvalidArgument, ValueError) as error:  # ValueError: it is no 32-bit number
        message = f"{name} cannot be {value:g}: {error}"
        raise InvalidArgument(message, field=f"sweep.parameters.{name}") from None


def _set(place: Message, name: str, value: float) -> None:
    field = place.DESCRIPTOR.fields_by_name.get(name)
    if field is not None and field.cpp_type in _NUMBERS:
        setattr(place, name, _NUMBERS[field.cpp_type](value))
