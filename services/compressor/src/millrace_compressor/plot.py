"""The picture of a quality report: what each artifact costs in quality, and what it gains."""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from millrace_compressor.domain import Compression, Load, Measurements

_INCHES = (11.0, 4.6)
_ORIGINAL = "original"
_TRIED = "tried by a search"
_FRONT = "beaten by none in both"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255")
_MARKS = "osD^vP<>"
_MEBIBYTE = 1 << 20
_TOLD_SCORES = 3  # of artifacts, in one line

Value = Callable[[Measurements], float | None]


def svg(compressions: Sequence[Compression]) -> bytes:
    """Perplexity over size and over speed, as SVG; the same for the same measurements.

    What no other artifact beats in both is joined by a line. Hollow: the gate rejected it. Crosses
    are what searches tried and did not take.
    """
    # Half a second, which services that draw nothing need not wait for.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "millrace", "font.size": 10}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        streams = _streams(compressions)
        _panel(left, compressions, "Size", "weights in MiB", _size, _original_size, -1)
        _tried(left, compressions)
        _panel(
            right,
            compressions,
            f"Speed, {_counted(streams)}",
            "tokens a second",
            lambda m: _speed(m.artifact_loads, streams),
            lambda m: _speed(m.original_loads, streams),
            1,
        )
        left.set_ylabel("perplexity of held-out text (less is better)")
        figure.suptitle(_title(compressions))
        handles: dict[str, Any] = {}
        for axes in (left, right):
            handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
        )
        drawn = BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _panel(
    axes: Any,
    compressions: Sequence[Compression],
    title: str,
    unit: str,
    of_artifact: Value,
    of_original: Value,
    better: int,
) -> None:
    """One set of axes. ``better``: 1 where more is better, -1 where less is."""
    points: list[tuple[float, float]] = []
    targets = sorted({_name(compression) for compression in compressions})
    for compression in compressions:
        measured = compression.measurements or Measurements()
        x, y = of_artifact(measured), measured.artifact_perplexity
        if x is not None and y is not None:
            look = targets.index(_name(compression))
            colour = _COLOURS[look % len(_COLOURS)]
            passed = compression.verdict is None or compression.verdict.passed
            axes.plot(
                x,
                y,
                _MARKS[look % len(_MARKS)],
                color=colour,
                markerfacecolor=colour if passed else "none",
                markersize=9,
                label=targets[look] + ("" if passed else " (rejected)"),
            )
            points.append((x, y))
        x, y = of_original(measured), measured.original_perplexity
        if x is not None and y is not None:
            axes.plot(x, y, "*", color="black", markersize=13, label=_ORIGINAL)
            points.append((x, y))
    front = pareto(points, better)
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), "-", color="0.6", zorder=1, label=_FRONT)
    axes.set(title=title, xlabel=f"{unit} ({'more' if better > 0 else 'less'} is better)")
    axes.margins(0.12)
    axes.grid(visible=True, color="0.92")
    axes.ticklabel_format(useOffset=False)
    if not points:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="0.5")


def _tried(axes: Any, compressions: Sequence[Compression]) -> None:
    """Sizes and perplexities of candidates, as if they had been measured on all tokens."""
    for compression in compressions:
        measured = compression.measurements or Measurements()
        before = measured.original_perplexity
        for trial in measured.search["trials"] if measured.search else ():
            increase = trial.get("perplexity_increase")
            if not trial["chosen"] and increase is not None and before is not None:
                size, perplexity = trial["size_bytes"] / _MEBIBYTE, before * (1 + increase)
                axes.plot(size, perplexity, "x", color="0.5", markersize=6, label=_TRIED)


def _name(compression: Compression) -> str:
    """The target, and what a search has made of it."""
    target = compression.order.target.value
    chosen = compression.measurements.chosen if compression.measurements else None
    if chosen is None:
        return target
    return f"{target}: {chosen['target'].removeprefix('TARGET_').lower().replace('_', '-')}"


def pareto(points: Sequence[tuple[float, float]], better: int) -> list[tuple[float, float]]:
    """The points that no other beats in both, by their first value.

    Args:
        points: (cost or gain, perplexity); less perplexity is better.
        better: 1 where more of the first is better, -1 where less is.
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (-better * point[0], point[1])):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return sorted(front)


def _streams(compressions: Sequence[Compression]) -> int:
    """The most streams at which every measured artifact was measured."""
    measured = [c.measurements.artifact_loads for c in compressions if c.measurements]
    common = [{load.streams for load in loads} for loads in measured if loads]
    return max(set.intersection(*common), default=1) if common else 1


def _counted(streams: int) -> str:
    return "one stream" if streams == 1 else f"{streams} streams at the same time"


def _size(measured: Measurements) -> float | None:
    return measured.artifact_size_bytes / _MEBIBYTE or None


def _original_size(measured: Measurements) -> float | None:
    return measured.original_size_bytes / _MEBIBYTE or None


def _speed(loads: Sequence[Load], streams: int) -> float | None:
    return next((load.tokens_per_second for load in loads if load.streams == streams), None)


def _tasks(compressions: Sequence[Compression]) -> list[str]:
    """A line a task that was measured of the first one's checkpoint: the original, then others."""
    lines: dict[tuple[str, int, str], list[str]] = {}
    for compression in compressions:
        task = compression.measurements.task if compression.measurements else None
        is_alike = compression.order.checkpoint.name == compressions[0].order.checkpoint.name
        if task is not None and is_alike:
            metric = task["metric"].removeprefix("TASK_METRIC_").lower().replace("_", " ")
            said = lines.setdefault((metric, task["rows"], task["digest"]), [])
            if not said:
                said.append(f"{_ORIGINAL} {task['original_score']:.1%}")
            said.append(f"{_name(compression)} {task['artifact_score']:.1%}")
    return [
        f"{metric} of {rows} answers: {', '.join(said[: _TOLD_SCORES + 1])}"
        for (metric, rows, _), said in lines.items()
    ]


def _title(compressions: Sequence[Compression]) -> str:
    models = sorted({compression.order.checkpoint.model for compression in compressions})
    steps = sorted({compression.order.checkpoint.step for compression in compressions})
    told = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    told = "\n".join([told, *_tasks(compressions)])
    # As text, not as mathematics: the user chose the name.
    return f"{', '.join(models)}, {told}".replace("$", r"\$")
