"""Strategies of rollouts as proto messages, and back."""

from dataclasses import asdict, fields
from typing import Any

from google.protobuf.message import Message

from millrace.registry.v1 import service_pb2 as pb
from millrace_registry.strategies import (
    BlueGreen,
    Canary,
    Immediate,
    Shadow,
    Split,
    SplitEnd,
    Strategy,
)

_ENDS = {end: pb.SplitEnd.Value(f"SPLIT_END_{end.value}") for end in SplitEnd}
_END_OF = {int(number): end for end, number in _ENDS.items()}


def strategy_from_proto(message: pb.RolloutStrategy) -> Strategy | None:
    """None: the user did not say."""
    match message.WhichOneof("strategy"):
        case "immediate":
            return Immediate()
        case "canary":
            return _canary(message.canary)
        case "shadow":
            return _shadow(message.shadow)
        case "blue_green":
            return BlueGreen(**_fields(BlueGreen, message.blue_green))
        case "split":
            given = _fields(Split, message.split)
            return Split(**{**given, "on_end": _end(message.split.on_end)})
        case _:
            return None


def strategy_to_proto(strategy: Strategy) -> pb.RolloutStrategy:
    match strategy:
        case Immediate():
            return pb.RolloutStrategy(immediate=pb.ImmediateStrategy())
        case Canary():
            return pb.RolloutStrategy(canary=pb.CanaryStrategy(**asdict(strategy)))
        case Shadow():
            return pb.RolloutStrategy(shadow=_shadow_to_proto(strategy))
        case BlueGreen():
            return pb.RolloutStrategy(blue_green=pb.BlueGreenStrategy(**asdict(strategy)))
        case Split():
            values = {**asdict(strategy), "on_end": _ENDS[strategy.on_end]}
            return pb.RolloutStrategy(split=pb.SplitStrategy(**values))


def _canary(message: pb.CanaryStrategy) -> Canary:
    return Canary(**{**_fields(Canary, message), "steps": tuple(message.steps)})


def _shadow(message: pb.ShadowStrategy) -> Shadow:
    canary = _canary(message.then_canary) if message.HasField("then_canary") else None
    return Shadow(**{**_fields(Shadow, message), "then_canary": canary})


def _shadow_to_proto(shadow: Shadow) -> pb.ShadowStrategy:
    values = asdict(shadow)
    canary = values.pop("then_canary")
    return pb.ShadowStrategy(**values, then_canary=pb.CanaryStrategy(**canary) if canary else None)


def _end(number: int) -> SplitEnd:
    return _END_OF.get(number, SplitEnd.PROMOTE_BETTER)


def _fields(kind: type[Any], message: Message) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in fields(kind)}
