"""The choice of a version: properties that hold for every route and every random number."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_gateway.route import (
    Choice,
    Route,
    RouteTable,
    Target,
    available,
    candidates,
    choose,
    side,
)
from millrace_gateway.wishes import Wish
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable

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


@given(shares, randoms, st.data())
def test_the_least_loaded_endpoint_is_chosen(
    weights: list[int], random: float, data: st.DataObject
) -> None:
    targets = targets_of(weights, endpoints=3)
    loads = {
        endpoint: data.draw(st.integers(0, 3))
        for target in targets
        for endpoint in target.endpoints
    }
    ejected = data.draw(ejections(targets))
    choice = choose(targets, random, (), loads, ejected)
    without_loads = choose(targets, random)
    assert choice is not None and without_loads is not None
    assert choice.target == without_loads.target, "shares are kept to, whatever the endpoints do"
    open_endpoints = available(choice.target, (), ejected)
    assert loads[choice.endpoint] == min(loads[endpoint] for endpoint in open_endpoints)


@given(st.data())
def test_endpoints_that_are_equally_loaded_are_used_evenly(data: st.DataObject) -> None:
    targets = targets_of([1], endpoints=3)
    busy, *idle = data.draw(st.permutations(targets[0].endpoints))
    count = 1000
    used = Counter(
        choice.endpoint
        for place in range(count)
        if (choice := choose(targets, place / count, (), {busy: 1})) is not None
    )
    assert busy not in used
    assert abs(used[idle[0]] - used[idle[1]]) <= 1


def ejections(targets: Sequence[Target]) -> st.SearchStrategy[dict[tuple[int, str], float]]:
    places = [(target.version, endpoint) for target in targets for endpoint in target.endpoints]
    return st.dictionaries(st.sampled_from(places), st.floats(1, 100))


@given(shares, st.data())
def test_ejected_endpoints_are_passed_over_until_all_are(
    weights: list[int], data: st.DataObject
) -> None:
    targets = targets_of(weights, endpoints=3)
    ejected = data.draw(ejections(targets))
    for target in targets:
        found = available(target, (), ejected)
        good = [e for e in target.endpoints if (target.version, e) not in ejected]
        if good:
            assert list(found) == good
        else:
            (least_bad,) = found
            until = [ejected[target.version, endpoint] for endpoint in target.endpoints]
            assert ejected[target.version, least_bad] == min(until)


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


def test_a_step_names_the_newest_version_of_its_checkpoint() -> None:
    table = RouteTable()
    table.replace(1, [route_of([1, 0], steps={400: 1, 200: 2, 100: 3})])
    assert table.find("t", "demo:ckpt-step-400")[1] == "1"
    assert table.find("t", "demo:ckpt-step-0200")[1] == "2"
    with pytest.raises(Unavailable, match="demo:ckpt-step-100 is being loaded"):
        table.find("t", "demo:ckpt-step-100")
    assert table.named("t", "demo:ckpt-step-100").pinned == "3"
    with pytest.raises(NotFound, match="newest steps: 400, 200, 100"):
        table.find("t", "demo:ckpt-step-7")
    with pytest.raises(InvalidArgument):
        table.find("t", "demo:ckpt-step-400@1")


def test_only_what_is_asked_is_wished_for() -> None:
    table = RouteTable()
    table.replace(1, [route_of([1], steps={400: 1, 100: 3})])
    table.named("t", "demo:ckpt-step-100")
    table.find("t", "demo@1")
    assert table.wishes.take() == []
    table.find("t", "demo:ckpt-step-400")
    with pytest.raises(Unavailable):
        table.find("t", "demo:ckpt-step-100")
    assert table.wishes.take() == [Wish("t", "demo", 1), Wish("t", "demo", 3)]


def test_a_model_may_have_a_name_that_looks_like_a_step() -> None:
    table = RouteTable()
    table.replace(1, [Route("t", "demo:ckpt-step-1", "t.d", targets_of([1]))])
    assert table.find("t", "demo:ckpt-step-1")[1] == ""


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_user_is_always_on_the_same_side(tenant: str, user: str) -> None:
    place = side("rollout-1", tenant, user)
    assert 0 <= place < 1
    assert place == side("rollout-1", tenant, user)


def test_another_test_splits_the_users_anew() -> None:
    users = [str(number) for number in range(2000)]
    first = [side("rollout-1", "acme", user) < 0.3 for user in users]
    second = [side("rollout-2", "acme", user) < 0.3 for user in users]
    # 2000 draws at 0.3: mean 600, standard deviation 20.5; both, independently: 180, 12.8.
    assert 500 < sum(first) < 700
    assert 110 < sum(a and b for a, b in zip(first, second, strict=True)) < 250
