"""Twice as much as there is: does high priority notice, and does anything get lost?

What there is, the peak, is the most tokens a second of whole answers that the gateway and its
Triton give to ever more streams, with the places that the gateway lets be filled. Then requests
come as Poisson processes: high priority alone, and with low priority up to twice the peak.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import linear_regression, median

from millrace_registry.triton_config import EngineSettings
from tests.bench import engine_cache, open_loop, processes
from tests.bench.engine_cache import family_mebibytes
from tests.bench.figures import Figure
from tests.bench.open_loop import Flow, Plan, Seen
from tests.bench.processes import Server
from tests.bench.road import percentile

# One endpoint's places: few enough that each answer is nearly as quick as with an idle neighbour.
SETTINGS = {"endpoint_generations": 6, "low_priority_share": 0.8}
TOKENS = 64
SECONDS = 60.0
_TIMES_PEAK = 2.0
_HIGH_SHARE = 1 / 5  # of the requests; most of what a busy machine is asked is not urgent
_PEAK_STREAMS = (4, 6, 8, 12)
_PEAK_ROUNDS = 2
_PEAK_SECONDS = 5.0
_SAMPLE_SECONDS = 0.5
_MOST_RATIO = 1.25
_LEAST_GOODPUT = 0.95
_MOST_REFUSAL_SECONDS = 0.050
_MOST_GROWTH = 1.05


def measure(
    folder: Path, artifact: Path, say: Callable[[str], None], seconds: float = SECONDS
) -> list[Figure]:
    with (
        processes.triton_server(folder, artifact, EngineSettings()) as endpoint,
        processes.gateway(folder / "gateway", endpoint, SETTINGS) as server,
    ):
        engine_cache.fill(endpoint, say)
        peak = peak_goodput(server, say)
        per_second = _TIMES_PEAK * peak / TOKENS
        high = Flow("high", server.key, TOKENS, "priority", per_second * _HIGH_SHARE)
        low = Flow("low", server.key, TOKENS, "flex", per_second * (1 - _HIGH_SHARE))
        say(f"overload: the peak is {peak:,.0f} tokens/s; high alone, {seconds:g} s")
        alone = open_loop.run(plan(server, [high], seconds))["high"]
        say(f"overload: {per_second:.0f} requests/s of both, {seconds:g} s")
        with (
            _MemoryOf(server.pid, "gateway") as ours,
            _MemoryOf(processes.triton_pid(), "Triton") as theirs,
        ):
            loaded = open_loop.run(plan(server, [high, low], seconds))
        again = peak_goodput(server, say)
    return [
        *high_figures(alone, loaded["high"]),
        *_low_figures(loaded["low"]),
        _goodput(peak, loaded.values()),
        *(each.figure() for each in (ours, theirs)),
        # All of the above is worth what this is: others may have used the machine meanwhile.
        Figure("the peak afterwards", again, "tokens/s", peak),
    ]


def peak_goodput(server: Server, say: Callable[[str], None]) -> float:
    """Tokens a second of as many streams as bring most, each number tried in turn."""
    found: dict[int, list[float]] = {streams: [] for streams in _PEAK_STREAMS}
    for streams in _PEAK_STREAMS * _PEAK_ROUNDS:
        flow = Flow("peak", server.key, TOKENS, "priority", streams=streams)
        found[streams].append(open_loop.run(plan(server, [flow], _PEAK_SECONDS))["peak"].goodput)
    medians = {streams: median(goodputs) for streams, goodputs in found.items()}
    say("peak: " + ", ".join(f"{n} streams {medians[n]:,.0f} tokens/s" for n in medians))
    return max(medians.values())


def plan(server: Server, flows: Sequence[Flow], seconds: float) -> Plan:
    address = server.url.removeprefix("http://").removesuffix("/v1")
    return Plan(address, processes.MODEL, flows, seconds)


def high_figures(alone: Seen, loaded: Seen) -> list[Figure]:
    of = "high priority at twice the peak"
    figures = [
        Figure(
            f"{what}, {of}, {name}",
            percentile(getattr(loaded, times), share),
            "s",
            percentile(getattr(alone, times), share),
            _MOST_RATIO if share > 0.5 else None,
            is_ceiling=True,
        )
        for what, times in (("latency", "latencies"), ("first token", "first"))
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    ]
    refused = len(loaded.refusals) + len(loaded.failures)
    lost = Figure(f"refused or failed, {of}", refused, "requests", goal=0, is_ceiling=True)
    late = Figure("sent after it was due, p99", percentile(loaded.late, 0.99), "s")
    return [*figures, lost, late]


def _low_figures(low: Seen) -> list[Figure]:
    return [
        Figure("answered, low priority at twice the peak", len(low.latencies) / low.due, "of all"),
        Figure(
            "time to a 429, p99",
            percentile(low.refusals, 0.99),
            "s",
            goal=_MOST_REFUSAL_SECONDS,
            is_ceiling=True,
        ),
        Figure(
            "429s without Retry-After", low.without_retry_after, "of all", goal=0, is_ceiling=True
        ),
        Figure("failed, low priority", len(low.failures), "requests", goal=0, is_ceiling=True),
    ]


def _goodput(peak: float, seen: Iterable[Seen]) -> Figure:
    total = sum(each.goodput for each in seen)
    return Figure("goodput at twice the peak", total, "tokens/s", peak, _LEAST_GOODPUT)


class _MemoryOf:
    """Watches a process with its children, from beginning to end of a block."""

    def __init__(self, pid: int, name: str) -> None:
        self._pid = pid
        self._name = name
        self._mebibytes: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_MemoryOf":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figure(self) -> Figure:
        """The line's end against its beginning, after the first third."""
        begin, end = line(self._mebibytes[len(self._mebibytes) // 3 :])
        name = f"memory of {self._name} at twice the peak"
        return Figure(name, end, "MiB", begin, _MOST_GROWTH, is_ceiling=True)

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._mebibytes.append(family_mebibytes(self._pid))


def line(values: Sequence[float]) -> tuple[float, float]:
    """Beginning and end of the straight line (least squares) through evenly spaced values."""
    slope, intercept = linear_regression(range(len(values)), values)
    return intercept, intercept + slope * (len(values) - 1)
