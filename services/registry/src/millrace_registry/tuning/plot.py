"""The trials of a search as SVG: how much each answers, and how quickly."""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from millrace_registry.tuning.report import Comparison, Report, settings_of
from millrace_registry.tuning.trial import Kind, Trial

_WIDTH, _HEIGHT = 720, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_OF_PRESENT, _OF_CANDIDATE, _WON = "#7f7f7f", "#1f77b4", "#d62728"
_TICKS = 5


def svg(report: Report) -> bytes:
    """Requests a second over the first token's 99th percentile, one mark a trial.

    Trials without such figures are left out. A line stands at the target; the band is what counts
    as noise around the present settings. The same for the same trials.
    """
    tuning = report.tuning
    shown = [t for t in tuning.trials if t.figures.server_first_token_seconds_p99 is not None]
    target = tuning.wish.target.first_token_seconds
    highest = [report.comparison.needed] if report.comparison else []
    scale = _Scale(
        seconds=max([target, *map(_seconds, shown)]) * 1.1,
        rates=max([1e-9, *highest, *map(_rate, shown)]) * 1.15,
    )
    winner = tuning.result.winner if tuning.result and tuning.result.is_better else None
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<desc>{escape(report.conclusion)}</desc>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(tuning.model)}: requests/s within the '
        f"target, by settings{'' if winner is not None else ' (no winner)'}</text>",
        *_axes(scale),
        *_noise(report.comparison, scale),
        *_target(target, scale),
        *(_mark(trial, winner, scale) for trial in shown),
        "</svg>",
    ]
    return ("\n".join(parts) + "\n").encode()


class _Scale:
    """``seconds`` and ``rates`` are the ends of the axes."""

    def __init__(self, seconds: float, rates: float) -> None:
        self.seconds = seconds
        self.rates = rates

    def x(self, seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / self.seconds

    def y(self, rate: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * rate / self.rates


def _axes(scale: _Scale) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for step in range(_TICKS + 1):
        seconds, rate = step / _TICKS * scale.seconds, step / _TICKS * scale.rates
        x, y = scale.x(seconds), scale.y(rate)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>'
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eee"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{seconds:.3g}</text>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{rate:.3g}</text>'
    yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#333"/>'
    yield (
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 18}" text-anchor="middle">'
        "first token, 99th percentile, seconds</text>"
    )
    middle = (_TOP + bottom) / 2
    yield (
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        "requests a second</text>"
    )


def _noise(compared: Comparison | None, scale: _Scale) -> Iterator[str]:
    if compared is None or not max(compared.present):
        return
    top, bottom = scale.y(compared.needed), scale.y(min(compared.present))
    yield (
        f'<rect class="noise" x="{_LEFT}" y="{top:.1f}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{bottom - top:.1f}" fill="{_OF_PRESENT}" fill-opacity="0.12"/>'
    )
    yield (
        f'<text x="{_WIDTH - _RIGHT - 5}" y="{top - 5:.1f}" text-anchor="end" '
        f'fill="{_OF_PRESENT}">noise: a winner is above</text>'
    )


def _target(target: float, scale: _Scale) -> Iterator[str]:
    x = scale.x(target)
    yield (
        f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#333" '
        'stroke-dasharray="5 4"/>'
    )
    yield f'<text x="{x - 5:.1f}" y="{_TOP + 12}" text-anchor="end">target</text>'


def _mark(trial: Trial, winner: int | None, scale: _Scale) -> str:
    x, y = scale.x(_seconds(trial)), scale.y(_rate(trial))
    has_won = trial.number == winner
    of_present = trial.look_kind in (Kind.PRESENT, Kind.CONTROL)
    colour = _WON if has_won else _OF_PRESENT if of_present else _OF_CANDIDATE
    title = f"{trial.number} ({trial.look_kind.lower()}): {settings_of(trial.serving)}"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if has_won else 5}" fill="{colour}" '
        f'fill-opacity="0.8"><title>{escape(title)}</title></circle>'
        f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{colour}">{trial.number}</text>'
    )


def _seconds(trial: Trial) -> float:
    return trial.figures.server_first_token_seconds_p99 or 0.0


def _rate(trial: Trial) -> float:
    return trial.figures.server_requests_per_second or 0.0
