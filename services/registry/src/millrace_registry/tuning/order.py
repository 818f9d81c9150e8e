"""What one search is told: from the registry to the process that searches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from millrace_registry.domain import Serving
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.trial import Trial


@dataclass(frozen=True)
class Order:
    """What is to be searched.

    Attributes:
        model: the name on Triton of the model that is tuned.
        present: the settings that serve now; ``engine``: what they leave open.
        vocabulary, context_tokens: of the model.
        done: looks of before the search was broken off; they are not taken again.
    """

    address: str
    control_key: str | None
    repository: Path
    model: str
    artifact: Path
    present: Serving
    engine: EngineSettings
    vocabulary: int
    context_tokens: int
    traffic: Sequence[tuple[int, int]]
    target: Target
    limits: Limits
    trials: int
    seconds: float
    seed: int
    done: Sequence[Trial] = ()


ORDER: TypeAdapter[Order] = TypeAdapter(Order)
"""As JSON."""
