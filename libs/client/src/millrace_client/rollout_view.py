"""How a rollout looks: a picture on a terminal, a line elsewhere. Pure."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from millrace_client import output, text
from millrace_client.api import Json
from millrace_client.sparkline import sparkline

ENDED = ("settled", "reversed", "superseded")
_WIDTH = 32


def line(rollout: Json) -> str:
    """Where a rollout stands, in one line."""
    parts = [
        _state(rollout),
        f"{rollout['model']}@{rollout['to_version']}",
        f"share {rollout['traffic_share']:.0%}",
    ]
    if rollout.get("mirror_share"):
        parts.append(f"mirrored {rollout['mirror_share']:.0%}")
    parts += [f"requests {rollout['requests']}", f"failed {rollout['failures']}"]
    if _agreement(rollout):
        parts.append(_agreement(rollout))
    return "  ".join((*parts, rollout["reason"]))


def picture(rollout: Json, latencies: Sequence[float], now_seconds: float) -> RenderableType:
    """The whole of a rollout, as it is now (seconds since the epoch).

    Args:
        latencies: means of the new version's first tokens in seconds, oldest first.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, cell in _rows(rollout, latencies, now_seconds):
        # As text, not as markup: reasons may hold brackets.
        grid.add_row(Text(name), Text(cell))
    return Group(_headline(rollout), grid)


def _headline(rollout: Json) -> Text:
    old = rollout["from_version"] or "-"
    head = Text.assemble((rollout["id"], "bold"), f"  {rollout['model']}  ")
    head.append(f"{old} → {rollout['to_version']}", style="green").append("  ")
    head.append_text(output.state(rollout["status"]))
    return head.append("  paused", style="yellow") if rollout.get("paused") else head


def _rows(
    rollout: Json, latencies: Sequence[float], now_seconds: float
) -> Iterator[tuple[str, str]]:
    if progress := _progress(rollout, now_seconds):
        yield "step", progress
    yield "traffic", _traffic(rollout)
    for name, version in (("new", rollout["to_version"]), ("old", rollout["from_version"])):
        if version and rollout.get(name):
            yield f"{name} @{version}", _side(rollout[name])
    if latencies:
        yield "first token", f"{sparkline(latencies, _WIDTH)}  {text.duration(latencies[-1])}"
    if agreement := _agreement(rollout):
        yield "shadow", agreement
    yield "why", rollout["reason"]


def _state(rollout: Json) -> str:
    return f"{rollout['status']} (paused)" if rollout.get("paused") else str(rollout["status"])


def _progress(rollout: Json, now_seconds: float) -> str:
    """``2/3  ━━━━────  12.0 s of 60.0 s, 8 answers needed``; empty when there is no step."""
    stage, began = rollout.get("stage"), rollout.get("step_started_at")
    if not stage or not began:
        return ""
    steps = f"{rollout['step'] + 1}/{stage['steps']}  " if stage["steps"] > 1 else ""
    end = now_seconds if rollout["status"] not in ENDED else rollout.get("finished_at") or began
    elapsed = min(max(0.0, end - began), stage["seconds"])
    drawn = text.bar(round(elapsed * 1000), round(stage["seconds"] * 1000), _WIDTH)
    times = f"{text.duration(elapsed)} of {text.duration(stage['seconds'])}"
    return (
        f"{stage['strategy']} {steps}{drawn}  {times}, {stage['minimum_requests']} answers needed"
    )


def _traffic(rollout: Json) -> str:
    share = rollout["traffic_share"]
    drawn = f"{text.bar(round(share * 1000), 1000, _WIDTH)}  {share:.0%} to the new version"
    if not rollout.get("mirror_share"):
        return drawn
    return f"{drawn}, {rollout['mirror_share']:.0%} mirrored to it"


def _side(side: Json) -> str:
    requests = f"{side['requests']:,} requests, {side['failures']:,} failed"
    rate = f" ({side['failure_rate']:.1%})" if side["requests"] else ""
    seconds = side["mean_first_token_seconds"]
    first = "" if seconds is None else f", first token after {text.duration(seconds)}"
    tokens = f", {side['tokens']:,} tokens" if side["tokens"] else ""
    return f"{requests}{rate}{first}{tokens}"


def _agreement(rollout: Json) -> str:
    shadow = rollout.get("shadow")
    if not shadow:
        return ""
    alike = "" if shadow["agreement"] is None else f", {shadow['agreement']:.1%} alike"
    return (
        f"{shadow['compared']:,} compared{alike}, {shadow['truncated']:,} cut short, "
        f"{shadow['failed']:,} failed"
    )
