"""The whole road against the bare engine: tokens a second, time to first token, gaps."""

import json
import subprocess
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from millrace_registry.triton_config import EngineSettings
from tests.bench import load, processes
from tests.bench.figures import Figure
from tests.bench.load import Plan, Report

_PROGRAM = Path(__file__).parent / "bare_engine.py"
_SETTINGS = EngineSettings()
# All streams are in at once: who waits for a place would be measured by others' answers.
_GATEWAY = {"default_priority_share": 1.0}
_PROMPT = "def main(arguments: list[str]) -> int:"
_RENDERED = f"<|im_start|>user\n{_PROMPT}<|im_end|>\n<|im_start|>assistant\n"
_MAX_TOKENS = 256
_ROUNDS = 5
# Streams, the requests of each, and the least share of the engine's own tokens a second.
_LOADS = ((1, 8, 0.90), (8, 6, None), (32, 4, 0.85), (64, 3, None))
_MOST_GAP_SECONDS = 0.020
_MOST_ADDED_SECONDS = 0.003


def measure(folder: Path, artifact: Path, say: Callable[[str], None]) -> list[Figure]:
    """Bare and served in turn, load by load, so that both see the same machine."""
    bare: dict[int, list[dict[str, Any]]] = defaultdict(list)
    served: dict[int, list[Report]] = defaultdict(list)
    with processes.triton_server(folder / "road", artifact, _SETTINGS) as endpoint:
        with processes.gateway(folder / "road-gateway", endpoint, _GATEWAY) as server:
            load.run(_plan(server, 8, 1))  # warm
            for number in range(1, _ROUNDS + 1):
                for streams, requests, _ in _LOADS:
                    bare[streams].append(_bare(artifact, streams, requests))
                    served[streams].append(load.run(_plan(server, streams, requests)))
                say(f"road: round {number} of {_ROUNDS}")
    return [
        figure
        for streams, _, goal in _LOADS
        for figure in _figures(streams, goal, bare[streams], served[streams])
    ]


def _bare(artifact: Path, streams: int, requests: int) -> dict[str, Any]:
    plan = {
        **asdict(_SETTINGS),
        "streams": streams,
        "requests": requests,
        "max_tokens": _MAX_TOKENS,
        "prompt": _RENDERED,
    }
    python = str(processes.TRITON_ENVIRONMENT / "bin/python")
    command = [python, str(_PROGRAM), str(artifact), json.dumps(plan)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _plan(server: processes.Server, streams: int, requests: int) -> Plan:
    return Plan(server.url, server.key, processes.MODEL, _PROMPT, streams, requests, _MAX_TOKENS)


def _figures(
    streams: int,
    goal: float | None,
    bare: Sequence[dict[str, Any]],
    served: Sequence[Report],
) -> list[Figure]:
    of = f"{streams} stream" if streams == 1 else f"{streams} streams"
    own = median(median(each["first"]) for each in bare)
    seen = median(median(each.first) for each in served)
    gaps = [percentile(each.gaps, 0.99) for each in served]
    figures = [
        Figure(
            f"tokens, {of}, against the bare engine",
            median(each.tokens / each.seconds for each in served),
            "tokens/s",
            median(each["tokens"] / each["seconds"] for each in bare),
            goal,
        ),
        Figure(
            f"gap between pieces, {of}, p99",
            median(gaps),
            "s",
            goal=_MOST_GAP_SECONDS,
            is_ceiling=True,
        ),
    ]
    is_unloaded = streams == 1
    added = Figure(
        f"time to first token added, {of}, p50",
        seen - own,
        "s",
        goal=_MOST_ADDED_SECONDS if is_unloaded else None,
        is_ceiling=True,
    )
    return [*figures, added]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
