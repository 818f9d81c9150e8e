"""The gateway before an engine that does nothing, beside LiteLLM's proxy before its like."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tests.bench import load, processes
from tests.bench.figures import Figure
from tests.bench.load import Plan
from tests.bench.null_engine import TOKENS
from tests.bench.processes import Server
from tests.bench.road import percentile

LITELLM = "litellm[proxy]==1.106.2"
_GOAL_REQUESTS = 10.0
_GOAL_LATENCY = 0.1
_STREAMS, _REQUESTS = 8, 100
_LONE_REQUESTS = 200


@dataclass(frozen=True)
class _Found:
    """Seconds of processor a request; seconds added to the backend's own, median and p99."""

    cpu_seconds: float
    added_p50: float
    added_p99: float


def measure(folder: Path, environment: Path, say: Callable[[str], None]) -> list[Figure]:
    """``environment`` is where LiteLLM is, or will be, installed."""
    _install(environment, say)
    figures: list[Figure] = []
    with ExitStack() as stack:
        backend = stack.enter_context(processes.null_openai(folder))
        endpoint = stack.enter_context(processes.null_engine(folder))
        ours = stack.enter_context(processes.gateway(folder / "alone", endpoint))
        theirs = stack.enter_context(processes.litellm_proxy(folder, environment, backend))
        for is_streamed in (False, True):
            what = "streamed" if is_streamed else "whole"
            found = [_look(server, backend, is_streamed) for server in (ours, theirs)]
            figures += _figures(what, *found)
            say(f"proxy: {what} answers")
    return figures


def _look(server: Server, backend: Server, is_streamed: bool) -> _Found:
    lone = Plan(
        server.url, server.key, processes.MODEL, "word", 1, _LONE_REQUESTS, TOKENS, is_streamed
    )
    load.run(replace(lone, requests=30))  # warm
    alone = load.run(replace(lone, url=backend.url, key=backend.key)).latencies
    through = load.run(lone).latencies
    before = server.cpu_seconds()
    busy = load.run(replace(lone, streams=_STREAMS, requests=_REQUESTS))
    used = server.cpu_seconds() - before
    return _Found(
        used / busy.requests,
        median(through) - median(alone),
        percentile(through, 0.99) - percentile(alone, 0.99),
    )


def _figures(what: str, ours: _Found, theirs: _Found) -> list[Figure]:
    return [
        Figure(
            f"requests a core, {what}, against LiteLLM",
            1 / ours.cpu_seconds,
            "requests/s",
            1 / theirs.cpu_seconds,
            _GOAL_REQUESTS,
        ),
        Figure(
            f"latency added, {what}, p50, against LiteLLM",
            ours.added_p50,
            "s",
            theirs.added_p50,
            _GOAL_LATENCY,
            is_ceiling=True,
        ),
        Figure(
            f"latency added, {what}, p99, against LiteLLM",
            ours.added_p99,
            "s",
            theirs.added_p99,
            _GOAL_LATENCY,
            is_ceiling=True,
        ),
    ]


def _install(environment: Path, say: Callable[[str], None]) -> None:
    """LiteLLM in an environment of its own: its pins are not ours."""
    stamp = environment / "installed"
    if not stamp.exists() or stamp.read_text() != LITELLM:
        say(f"proxy: installing {LITELLM}")
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        install = [str(environment / "bin/pip"), "install", "--quiet", LITELLM]
        subprocess.run(install, check=True, capture_output=True)
        stamp.write_text(LITELLM)
