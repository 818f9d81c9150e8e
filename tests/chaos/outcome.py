"""What a chaos harness says when it is done, and the shape that all of them have."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """The end of one harness.

    Attributes:
        name: of the harness, as ``make chaos ONLY=`` takes it.
        runs: how many disturbances were made.
        violations: one sentence for each broken promise; none when all were kept.
        figures: what was measured, by a name that ends in its unit.
        skipped_because: what this machine does not allow; empty when it ran.
    """

    name: str
    runs: int
    violations: Sequence[str] = ()
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    skipped_because: str = ""

    @property
    def is_broken(self) -> bool:
        """Also when nothing was disturbed: that proves nothing."""
        return bool(self.violations) or (self.runs == 0 and not self.skipped_because)

    @property
    def verdict(self) -> str:
        if self.skipped_because:
            return f"SKIPPED ({self.skipped_because})"
        return f"BROKEN {len(self.violations)} times" if self.is_broken else "kept"


Harness = Callable[[int, int, Path, Say], Outcome]
"""``run(runs, seed, directory, say)``: disturb ``runs`` times as ``seed`` draws, in an empty
``directory``; ``say`` takes a line of progress."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` (0–1) of ``values`` do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def write(outcomes: Sequence[Outcome], seed: int, path: Path) -> None:
    """Keep ``outcomes`` as JSON at ``path``."""
    document = {"seed": seed, "outcomes": [asdict(outcome) for outcome in outcomes]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
