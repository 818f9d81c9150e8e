"""The benchmark's arithmetic, and that its client counts what the gateway answers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import figures, load, processes
from tests.bench.figures import Figure
from tests.bench.load import Plan
from tests.bench.null_engine import TOKENS
from tests.bench.road import percentile

FAST = Figure("tokens", 90.0, "tokens/s", 100.0, 0.85)
SLOW = Figure("latency", 0.03, "s", goal=0.02, is_ceiling=True)


def test_a_goal_is_reached_or_missed() -> None:
    assert FAST.ratio == 0.9
    assert FAST.reaches_goal
    assert not SLOW.reaches_goal
    assert replace(SLOW, goal=None).reaches_goal is None
    assert "MISSED" in figures.table([SLOW])
    assert "reached" in figures.table([FAST])


def test_what_is_written_can_be_compared(tmp_path: Path) -> None:
    figures.write([FAST, SLOW], tmp_path / "bench.json")
    before = figures.read(tmp_path / "bench.json")
    assert before == [FAST, SLOW]
    assert "+10.0%" in figures.comparison(before, [replace(FAST, value=99.0)])


def test_the_percentile_is_a_value_seen() -> None:
    assert percentile(range(1, 101), 0.99) == 100
    assert percentile(range(1, 101), 0.5) == 51
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize("is_streamed", [True, False])
def test_the_client_counts_all_tokens_and_pieces(
    server: processes.Server, is_streamed: bool
) -> None:
    plan = Plan(server.url, server.key, processes.MODEL, "word", 3, 4, TOKENS, is_streamed)
    report = load.run(plan)
    assert report.requests == len(report.latencies) == 3 * 4
    assert report.tokens == report.requests * TOKENS
    assert len(report.first) == (report.requests if is_streamed else 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[processes.Server]:
    folder = tmp_path_factory.mktemp("bench")
    with (
        processes.null_engine(folder) as endpoint,
        processes.gateway(folder / "gateway", endpoint) as started,
    ):
        yield started
