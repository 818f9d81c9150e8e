"""What a benchmark found: figures beside what they are measured against, and their goals."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured ratio, or one plain value without a peer.

    Attributes:
        value: in ``unit``.
        reference: what ``value`` is compared with, in the same unit; None when there is nothing.
        goal: what the ratio, or without a reference the value, should be; None when none is set.
        is_ceiling: the goal is a most, not a least.
    """

    name: str
    value: float
    unit: str
    reference: float | None = None
    goal: float | None = None
    is_ceiling: bool = False

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference if self.reference else None

    @property
    def reaches_goal(self) -> bool | None:
        if self.goal is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured <= self.goal if self.is_ceiling else measured >= self.goal


def table(figures: Sequence[Figure]) -> str:
    """One line a figure: value, reference, ratio, goal."""
    lines = [f"{'':46}{'measured':>12}{'against':>12}{'ratio':>8}  goal"]
    for figure in figures:
        reference = "" if figure.reference is None else f"{figure.reference:,.4g}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3f}"
        lines.append(
            f"{figure.name:46}{figure.value:>12,.4g}{reference:>12}{ratio:>8}  "
            f"{_goal(figure)} [{figure.unit}]"
        )
    return "\n".join(lines)


def write(figures: Sequence[Figure], path: Path) -> None:
    """All figures as JSON, with their ratios."""
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": rows}, indent=2) + "\n")


def read(path: Path) -> list[Figure]:
    rows = json.loads(path.read_text())["figures"]
    names = Figure.__dataclass_fields__
    return [Figure(**{key: row[key] for key in names}) for row in rows]


def comparison(before: Sequence[Figure], after: Sequence[Figure]) -> str:
    """What became of each figure that both have."""
    known = {figure.name: figure for figure in before}
    lines = [f"{'':46}{'before':>12}{'after':>12}{'change':>9}"]
    for figure in after:
        if (old := known.get(figure.name)) is not None and old.value:
            change = figure.value / old.value - 1
            lines.append(
                f"{figure.name:46}{old.value:>12,.4g}{figure.value:>12,.4g}{change:>+9.1%}"
            )
    return "\n".join(lines)


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return "-"
    sign = "<=" if figure.is_ceiling else ">="
    return f"{sign} {figure.goal:g} {'reached' if figure.reaches_goal else 'MISSED'}"
