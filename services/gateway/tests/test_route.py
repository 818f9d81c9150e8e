"""The choice of a version: properties that hold for every route and every random number."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_gateway.route import Choice, Route, RouteTable, Target, candidates, choose
from millrace_runtime.errors import NotFound, Unavailable

shares = st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any)
randoms = st.floats(0, 1, exclude_max=True)


def targets_of(weights: list[int], endpoints: int = 2) -> tuple[Target, ...]:
    total = sum(weights)
    return tuple(
        Target(
            version=number,
            share=weight / total,
            endpoints=tuple(f"host{number}-{place}:1" for place in range(endpoints)),
        )
        for number, weight in enumerate(weights, start=1)
    )


def route_of(weights: list[int], **fields: object) -> Route:
    return Route("t", "demo", "t.demo", targets_of(weights), **fields)  # type: ignore[arg-type]


@given(shares, randoms)
def test_a_choice_is_a_serving_target_at_one_of_its_endpoints(
    weights: list[int], random: float
) -> None:
    choice = choose(candidates(route_of(weights), ""), random)
    assert choice is not None
    assert choice.target.share > 0
    assert choice.endpoint in choice.target.endpoints


@given(shares, randoms)
def test_a_choice_is_deterministic(weights: list[int], random: float) -> None:
    targets = candidates(route_of(weights), "")
    assert choose(targets, random) == choose(targets, random)


@given(shares)
def test_evenly_spread_numbers_give_the_shares(weights: list[int]) -> None:
    targets = candidates(route_of(weights), "")
    count = 2000
    chosen = Counter(
        choice.target.version
        for place in range(count)
        if (choice := choose(targets, place / count)) is not None
    )
    for target in targets:
        assert chosen[target.version] / count == pytest.approx(target.share, abs=2 / count)


@given(shares)
def test_endpoints_of_a_target_are_used_evenly(weights: list[int]) -> None:
    targets = candidates(route_of(weights), "")
    count = 4000
    used = Counter(
        choice.endpoint
        for place in range(count)
        if (choice := choose(targets, place / count)) is not None
    )
    for target in targets:
        first, second = (used[endpoint] for endpoint in target.endpoints)
        assert abs(first - second) <= 4


@given(shares, randoms, st.data())
def test_what_failed_is_not_chosen_again(
    weights: list[int], random: float, data: st.DataObject
) -> None:
    targets = candidates(route_of(weights), "")
    everything = [Choice(target, endpoint) for target in targets for endpoint in target.endpoints]
    failed = data.draw(st.sets(st.sampled_from(range(len(everything)))))
    excluded = {everything[index] for index in failed}
    choice = choose(targets, random, excluded)
    if len(excluded) == len(everything):
        assert choice is None
    else:
        assert choice is not None and choice not in excluded


@given(shares, randoms, st.integers(1, 5))
def test_a_named_version_is_taken_whatever_its_share(
    weights: list[int], random: float, version: int
) -> None:
    route = route_of(weights)
    if version > len(weights):
        with pytest.raises(NotFound):
            candidates(route, str(version))
        return
    choice = choose(candidates(route, str(version)), random)
    assert choice is not None and choice.target.version == version


def test_an_alias_names_a_version() -> None:
    route = route_of([1, 0], aliases={"champion": 2})
    (target,) = candidates(route, "champion")
    assert target.version == 2
    with pytest.raises(NotFound, match="demo@1, demo@2"):
        candidates(route, "nobody")


def test_nothing_serves_yet() -> None:
    route = Route("t", "demo", "t.demo", (Target(1, 0.0, ("a:1",)), Target(2, 1.0, ())))
    with pytest.raises(Unavailable):
        candidates(route, "")


def test_table() -> None:
    async def scenario() -> None:
        table = RouteTable()
        with pytest.raises(Unavailable):
            table.find("t", "demo")
        waiting = asyncio.ensure_future(table.wait_for_change(5))
        await asyncio.sleep(0)
        table.replace(1, [route_of([1])])
        await asyncio.wait_for(waiting, 1)
        assert table.find("t", "demo@7")[1] == "7"
        with pytest.raises(NotFound):
            table.find("other", "demo")
        table.replace(2, [])
        with pytest.raises(NotFound):
            table.find("t", "demo")

    asyncio.run(scenario())
