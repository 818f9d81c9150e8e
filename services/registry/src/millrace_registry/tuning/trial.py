"""One look at one set of settings, as it is told and kept."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from millrace_registry.domain import Serving
from millrace_registry.tuning.measure import Figures, Look


class Kind(StrEnum):
    """What a look is for (``service.proto``: ServingTrial.Kind)."""

    PRESENT = "PRESENT"
    CANDIDATE = "CANDIDATE"
    CONTROL = "CONTROL"
    CONFIRMATION = "CONFIRMATION"


@dataclass
class Trial:
    """One look; ``reason``: why it failed or was given up."""

    number: int
    look_kind: Kind
    serving: Serving
    state: str = "MEASURED"
    reason: str = ""
    load_seconds: float = 0.0
    figures: Figures = field(default_factory=Figures)

    @property
    def score(self) -> float:
        """Requests a second within the target; 0: none was, or it was given up."""
        return Look(self.figures).score if self.state == "MEASURED" else 0.0

    def is_of(self, kind: Kind, serving: Serving) -> bool:
        return (self.look_kind, self.serving) == (kind, serving)


TRIAL: TypeAdapter[Trial] = TypeAdapter(Trial)


def document_of(trial: Trial) -> dict[str, Any]:
    """A trial as JSON; what is not finite was not measured."""
    figures = {name: _finite(value) for name, value in asdict(trial.figures).items()}
    return {**asdict(trial), "look_kind": trial.look_kind.value, "figures": figures}


def trial_of(document: Mapping[str, Any]) -> Trial:
    """What ``document_of`` made, or a job's line ``trial``."""
    given = {name: document[name] for name in Trial.__dataclass_fields__ if name in document}
    return TRIAL.validate_python(given)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
