"""What a method's parameters may not say; refused when a job is made, not when it trains."""

import json

from millrace_runtime.errors import InvalidArgument
from millrace_tuner import methods
from millrace_tuner.graders import parsing
from millrace_tuner.methods import Method, Reinforcement

_GRADER = "method.reinforcement.grader"


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


def _require_grader(text: str) -> None:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(
            f"the grader is not JSON: {error}", reason="INVALID_VALUE", field=_GRADER
        ) from None
    parsing.parse(document, _GRADER)
