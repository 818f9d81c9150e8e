"""That the crowd's figures are what happened: counts, times since due, refusals."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.bench import neighbours, open_loop, overload, processes
from tests.bench.null_engine import TOKENS
from tests.bench.open_loop import Flow, Plan, Seen
from tests.bench.processes import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("crowd")
    with (
        processes.null_engine(folder) as endpoint,
        processes.gateway(folder / "gateway", endpoint) as started,
    ):
        yield started


def short(server: Server, flows: list[Flow], seconds: float) -> Plan:
    return replace(overload.plan(server, flows, seconds), warm_seconds=0.1)


def test_what_is_due_is_asked_and_counted(server: Server) -> None:
    flows = [Flow("one", server.key, 16, "priority", 40), Flow("two", server.key, 16, "flex", 20)]
    seen = open_loop.run(short(server, flows, 2.0))
    for name, due in (("one", 80), ("two", 40)):
        found = seen[name]
        # A Poisson process: its standard deviation is the root of its mean, six of which are rare.
        assert abs(found.due - due) < 6 * due**0.5
        assert len(found.latencies) == len(found.first) == len(found.late) == found.due
        assert all(
            0 < first <= all for first, all in zip(found.first, found.latencies, strict=True)
        )
        assert found.tokens % TOKENS == 0
        assert not found.refusals
        assert found.failures == []


def test_streams_are_always_in_progress(server: Server) -> None:
    flow = Flow("streams", server.key, 16, streams=3)
    found = open_loop.run(short(server, [flow], 1.0))["streams"]
    assert found.goodput == found.tokens / 1.0 > 0
    # No answer can take longer than three in a row leave time for.
    assert sum(found.latencies) <= 3 * 1.0 + max(found.latencies) * 3


def test_refusals_and_mistakes_are_told_apart(server: Server) -> None:
    limited = neighbours.new_key(server, {"requests_per_minute": 1})
    flows = [
        Flow("limited", limited, 16, per_second=40),
        Flow("unknown", "sk-mr-none", 16, per_second=10),
    ]
    seen = open_loop.run(short(server, flows, 1.0))
    refused, unknown = seen["limited"], seen["unknown"]
    assert len(refused.refusals) + len(refused.latencies) == refused.due > 1
    assert len(refused.refusals) >= refused.due - 1
    assert refused.without_retry_after == 0
    assert len(unknown.failures) == unknown.due > 0
    assert "401" in unknown.failures[0]


def test_a_server_that_breaks_off_is_a_failure() -> None:
    crowd = open_loop.Crowd(Plan("127.0.0.1:1", "m", [Flow("a", "k", 1)], 1.0))
    crowd._begin, crowd._end = 0.0, 10.0
    crowd._count(Flow("a", "k", 1), 1.0, 0.0, 0.0, 2.0, b"HTTP/1.1 000 broken off\r\n\r\n")
    assert len(crowd.seen["a"].failures) == 1


def test_the_line_through_a_rise() -> None:
    begin, end = overload.line([float(value) for value in range(10, 20)])
    assert begin == pytest.approx(10)
    assert end == pytest.approx(19)


def test_what_is_missed_is_said() -> None:
    alone = Seen(due=1, seconds=1.0, late=[0.0], first=[0.1], latencies=[0.1])
    slow = Seen(due=1, seconds=1.0, late=[0.0], first=[0.1], latencies=[0.2])
    by_name = {figure.name: figure for figure in overload.high_figures(alone, slow)}
    assert by_name["latency, high priority at twice the peak, p99"].reaches_goal is False
    assert by_name["first token, high priority at twice the peak, p99"].reaches_goal
    assert by_name["refused or failed, high priority at twice the peak"].reaches_goal
