"""What a strategy must be beside what the proto's rules say of each field."""

from millrace_registry.strategies import Canary, Shadow, Strategy
from millrace_runtime.errors import InvalidArgument


def require_rising_steps(strategy: Strategy) -> None:
    """
    Raises:
        InvalidArgument: a canary's steps do not rise.
    """
    match strategy:
        case Canary():
            _require_rising(strategy, "deployment.strategy.canary.steps")
        case Shadow(then_canary=Canary() as canary):
            _require_rising(canary, "deployment.strategy.shadow.then_canary.steps")


def _require_rising(canary: Canary, field: str) -> None:
    if list(canary.steps) != sorted(set(canary.steps)):
        raise InvalidArgument(
            f"each step must be larger than the one before it, not {list(canary.steps)}",
            field=field,
        )
