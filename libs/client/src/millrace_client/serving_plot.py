"""The trials of a search for settings as SVG: how much each answers, and how quickly."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from millrace_client.api import Json

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_COLOURS = {
    "present": "#7f7f7f",
    "control": "#7f7f7f",
    "candidate": "#1f77b4",
    "confirmation": "#1f77b4",
}
_WON = "#d62728"
_TICKS = 5


def plot(model: str, trials: Sequence[Json], winner: int, target_seconds: float) -> str:
    """Requests a second over the first token's 99th percentile, one mark a trial.

    Trials without such figures are left out; a line stands at the target.
    """
    shown = [trial for trial in trials if trial["server_first_token_seconds_p99"] is not None]
    seconds = max([target_seconds, *(t["server_first_token_seconds_p99"] for t in shown)]) * 1.1
    rates = max([1e-9, *(t["server_requests_per_second"] for t in shown)]) * 1.15
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(model)}: requests/s within the target, '
        "by settings</text>",
        *_axes(seconds, rates),
        *_target(target_seconds, seconds),
        *(_mark(trial, winner, seconds, rates) for trial in shown),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(seconds: float, rates: float) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for step in range(_TICKS + 1):
        share = step / _TICKS
        x, y = _x(share * seconds, seconds), _y(share * rates, rates)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eee"/>'
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eee"/>'
        yield (
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * seconds:.3g}</text>'
        )
        yield (
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * rates:.3g}</text>'
        )
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


def _target(target: float, seconds: float) -> Iterator[str]:
    x = _x(target, seconds)
    yield (
        f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" stroke="#333" '
        'stroke-dasharray="5 4"/>'
    )
    yield f'<text x="{x - 5:.1f}" y="{_TOP + 12}" text-anchor="end">target</text>'


def _mark(trial: Json, winner: int, seconds: float, rates: float) -> str:
    x = _x(trial["server_first_token_seconds_p99"], seconds)
    y = _y(trial["server_requests_per_second"], rates)
    has_won = trial["number"] == winner
    colour = _WON if has_won else _COLOURS[trial["kind"]]
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if has_won else 5}" fill="{colour}" '
        f'fill-opacity="0.8"><title>{escape(title(trial))}</title></circle>'
        f'<text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{colour}">{trial["number"]}</text>'
    )


def title(trial: Json) -> str:
    """A trial's settings, in a few words."""
    named = {key: value for key, value in trial["serving"].items() if key != "queue_policy"}
    given = [f"{key} {value}" for key, value in named.items() if value is not None]
    return f"{trial['number']} ({trial['kind']}): {', '.join(given) or 'defaults'}"


def _x(value: float, largest: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / largest


def _y(value: float, largest: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / largest
