"""What a method's parameters may not say; refused when a job is made, not when it trains."""

import json

from millrace_runtime.errors import InvalidArgument
from millrace_tuner import methods
from millrace_tuner.graders import parsing
from millrace_tuner.methods import Adapter, Method, Reinforcement

_GRADER = "method.reinforcement.grader"
_ZERO_METHODS = ("supervised", "pretraining", "classification", "sequence", "reward")


def require_sensible(method: Method) -> None:
    """
    Raises:
        InvalidArgument: naming the field: parameters contradict one another, or a grader is none.
    """
    contradiction = methods.contradiction(method)
    if contradiction is not None:
        field = f"method.{method.kind}.label_smoothing"
        raise InvalidArgument(contradiction, reason="INVALID_VALUE", field=field)
    if isinstance(method, Reinforcement):
        _require_grader(method.grader)


def require_shardable(method: Method, adapter: Adapter | None, zero_stage: int) -> None:
    """
    Raises:
        InvalidArgument: naming ``zero_stage``, where DeepSpeed's ZeRO cannot train such a job.
    """
    mistake = zero_mistake(method, adapter, zero_stage)
    if mistake is not None:
        field = "hyperparameters.zero_stage"
        raise InvalidArgument(f"{field}: {mistake}", reason="INVALID_VALUE", field=field)


def zero_mistake(method: Method, adapter: Adapter | None, zero_stage: int) -> str | None:
    """Why DeepSpeed's ZeRO cannot train such a job; None: it can. Stage 0 is without it."""
    if not zero_stage:
        return None
    if method.kind not in _ZERO_METHODS:
        return (
            f"{method.kind!r} computes with its models outside DeepSpeed's engine, which alone "
            f"knows its precision and its weights; ZeRO trains {', '.join(_ZERO_METHODS)}"
        )
    if adapter is not None and adapter.kind == "adalora":
        return "'adalora' chooses ranks by gradients, which ZeRO frees before they can be read"
    if adapter is not None and adapter.quantized_base and zero_stage == 3:
        return "stage 3 cannot split a base in four bits; take stage 1 or 2, or quantize nothing"
    return None


def _require_grader(text: str) -> None:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(
            f"the grader is not JSON: {error}", reason="INVALID_VALUE", field=_GRADER
        ) from None
    parsing.parse(document, _GRADER)
