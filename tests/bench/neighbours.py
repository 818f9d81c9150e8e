"""Two keys share an engine, and one asks for ten times its share: does the other notice?

A share is what a key's ``requests_per_minute`` allows, with some room for chance, and what the one
asks for in all cases; the other asks for as much, and then for ten times that. A minute's worth may
come at once: ``key_share`` keeps it from filling the endpoint.
"""

import json
import math
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from millrace_registry.triton_config import EngineSettings
from tests.bench import open_loop, overload, processes
from tests.bench.figures import Figure
from tests.bench.open_loop import Flow, Seen
from tests.bench.overload import SECONDS, TOKENS, plan
from tests.bench.processes import Server
from tests.bench.road import percentile

_SETTINGS = {**overload.SETTINGS, "key_share": 0.5}
_ROOM = 1.2
# Of the peak. Both together leave room, so that nobody is refused while both keep to theirs.
_SHARE = 0.25
_TIMES = 10.0
_MOST_RATIO = 1.10


def measure(
    folder: Path, artifact: Path, say: Callable[[str], None], seconds: float = SECONDS
) -> list[Figure]:
    with (
        processes.triton_server(folder, artifact, EngineSettings()) as endpoint,
        processes.gateway(folder / "gateway", endpoint, _SETTINGS) as server,
    ):
        share = _SHARE * overload.peak_goodput(server, say) / TOKENS
        limits = {"requests_per_minute": math.ceil(_ROOM * 60 * share)}
        quiet = Flow("quiet", new_key(server, limits), TOKENS, per_second=share)
        greedy = new_key(server, limits)
        found: dict[float, dict[str, Seen]] = {}
        for times in (0.0, 1.0, _TIMES):
            say(f"neighbours: one of two keys at {times:g} times its share, {seconds:g} s")
            flows = [quiet]
            if times:
                flows.append(Flow("greedy", greedy, TOKENS, per_second=times * share))
            found[times] = open_loop.run(plan(server, flows, seconds))
    return _figures(found)


def _figures(found: dict[float, dict[str, Seen]]) -> list[Figure]:
    kept, pressed = found[1.0]["quiet"], found[_TIMES]["quiet"]
    greedy = found[_TIMES]["greedy"]
    of = "of whose neighbour takes tenfold"
    figures = [
        Figure(
            f"latency {of}, {name}",
            percentile(pressed.latencies, share),
            "s",
            percentile(kept.latencies, share),
            _MOST_RATIO if share > 0.5 else None,
            is_ceiling=True,
        )
        for share, name in ((0.5, "p50"), (0.99, "p99"))
    ]
    alone = percentile(found[0.0]["quiet"].latencies, 0.99)
    refused = len(pressed.refusals) + len(pressed.failures)
    return [
        *figures,
        Figure("latency beside nobody, p99", alone, "s"),
        Figure(f"refused or failed, {of}", refused, "requests", goal=0, is_ceiling=True),
        Figure("refused of what comes tenfold", len(greedy.refusals) / greedy.due, "of all"),
    ]


def new_key(server: Server, limits: Mapping[str, int]) -> str:
    """The secret of a new key with ``limits``."""
    request = urllib.request.Request(
        f"{server.url}/keys",
        json.dumps(limits).encode(),
        {"authorization": f"Bearer {server.key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["secret"])
