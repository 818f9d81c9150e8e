"""``strategy`` of a deployment: how traffic moves to a new version."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway.rest.shapes import Int32, Number, RequestBody, enum_value, enum_word

_ENDS = Literal["promote_better", "keep_old", "promote_unless_worse"]
Bake = Annotated[Number, Field(ge=0, le=86_400)]
Answers = Annotated[Int32, Field(ge=1, le=1_000_000)]
Increase = Annotated[Number, Field(ge=0, le=1)]
_SPLIT_END = "SPLIT_END_"

_CANARY = ("steps", "bake_seconds", "minimum_requests", "maximum_error_rate_increase")
_SETTINGS: dict[str, tuple[str, ...]] = {
    "canary": _CANARY,
    "shadow": ("share", *_CANARY[1:], "then_canary", *(f"then_canary.{name}" for name in _CANARY)),
    "blue_green": (*_CANARY[1:], "keep_seconds"),
    "split": ("share", "duration_seconds", *_CANARY[2:], "on_end"),
}
FIELDS = {
    f"deployment.strategy.{kind}.{name}": f"strategy.{name}"
    for kind, names in _SETTINGS.items()
    for name in names
}
"""The registry's names of settings, as clients know them."""


class Immediate(RequestBody):
    """All traffic at once, as soon as the new version answers."""

    type: Literal["immediate"]


class CanarySteps(RequestBody):
    """A share of the requests first, in rising steps."""

    steps: Annotated[
        list[Annotated[Number, Field(gt=0, lt=1)]], Field(min_length=1, max_length=20)
    ] = Field(default=[0.25])
    bake_seconds: Bake = 3.0
    minimum_requests: Answers = 8
    maximum_error_rate_increase: Increase = 0.05


class Canary(CanarySteps):
    """A share of the requests first, in rising steps."""

    type: Literal["canary"]


class Shadow(RequestBody):
    """The old version answers; a share of the requests is sent to the new one too, whose answers
    are compared and never returned. Then all traffic moves, or a canary follows."""

    type: Literal["shadow"]
    share: Annotated[Number, Field(gt=0, le=1)] = 0.1
    bake_seconds: Bake = 60.0
    minimum_requests: Answers = 20
    maximum_error_rate_increase: Increase = 0.05
    then_canary: CanarySteps | None = None


class BlueGreen(RequestBody):
    """The new version is loaded and checked beside the old one; then all traffic goes to it at
    once, and the old one stays loaded for a while, so that the way back is instant."""

    type: Literal["blue_green"]
    bake_seconds: Bake = 3.0
    minimum_requests: Answers = 8
    maximum_error_rate_increase: Increase = 0.05
    keep_seconds: Annotated[Number, Field(ge=0, le=604_800)] = 600.0


class Split(RequestBody):
    """A/B: a share of the users is answered by the new version for a time, each always by the same
    one. Who asks, the request's `safety_identifier` or `user` says, else its key."""

    type: Literal["split"]
    share: Annotated[Number, Field(gt=0, lt=1)] = 0.5
    duration_seconds: Annotated[Number, Field(gt=0, le=2_592_000)] = 3600.0
    minimum_requests: Answers = 20
    maximum_error_rate_increase: Increase = 0.05
    on_end: _ENDS = "promote_better"


Strategy = Annotated[Immediate | Canary | Shadow | BlueGreen | Split, Field(discriminator="type")]


def strategy_message(body: Strategy) -> pb.RolloutStrategy:
    values = body.model_dump(exclude={"type"}, exclude_none=True)
    match body:
        case Immediate():
            return pb.RolloutStrategy(immediate=pb.ImmediateStrategy())
        case Canary():
            return pb.RolloutStrategy(canary=pb.CanaryStrategy(**values))
        case Shadow():
            canary = values.pop("then_canary", None)
            then = None if canary is None else pb.CanaryStrategy(**canary)
            return pb.RolloutStrategy(shadow=pb.ShadowStrategy(**values, then_canary=then))
        case BlueGreen():
            return pb.RolloutStrategy(blue_green=pb.BlueGreenStrategy(**values))
        case Split():
            values["on_end"] = enum_value(pb.SplitEnd, body.on_end, _SPLIT_END)
            return pb.RolloutStrategy(split=pb.SplitStrategy(**values))


def strategy(message: pb.RolloutStrategy) -> Strategy | None:
    """None: of a kind that this gateway does not know."""
    match message.WhichOneof("strategy"):
        case "immediate":
            return Immediate(type="immediate")
        case "canary":
            return Canary(type="canary", **_canary(message.canary))
        case "shadow":
            return _shadow(message.shadow)
        case "blue_green":
            return _blue_green(message.blue_green)
        case "split":
            return _split(message.split)
        case _:
            return None


def _canary(message: pb.CanaryStrategy) -> dict[str, Any]:
    return {**_limits(message), "steps": list(message.steps), "bake_seconds": message.bake_seconds}


def _shadow(message: pb.ShadowStrategy) -> Shadow:
    then = message.then_canary
    return Shadow(
        type="shadow",
        share=message.share,
        bake_seconds=message.bake_seconds,
        then_canary=CanarySteps(**_canary(then)) if message.HasField("then_canary") else None,
        **_limits(message),
    )


def _blue_green(message: pb.BlueGreenStrategy) -> BlueGreen:
    return BlueGreen(
        type="blue_green",
        bake_seconds=message.bake_seconds,
        keep_seconds=message.keep_seconds,
        **_limits(message),
    )


def _split(message: pb.SplitStrategy) -> Split:
    on_end = enum_word(pb.SplitEnd, message.on_end, _SPLIT_END)
    return Split(
        type="split",
        share=message.share,
        duration_seconds=message.duration_seconds,
        on_end=on_end,  # type: ignore[arg-type]  # a word of the enum's
        **_limits(message),
    )


def _limits(
    message: pb.CanaryStrategy | pb.ShadowStrategy | pb.BlueGreenStrategy | pb.SplitStrategy,
) -> dict[str, Any]:
    return {
        "minimum_requests": message.minimum_requests,
        "maximum_error_rate_increase": message.maximum_error_rate_increase,
    }
