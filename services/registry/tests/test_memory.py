"""Who has a place in an endpoint's memory."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from millrace_registry.domain import Serving
from millrace_registry.memory import Claim, Memory, Rank, need_bytes, plan, room_for_held
from millrace_registry.triton_config import EngineSettings

GIB = 2**30
MIB = 2**20


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    """Versions of one endpoint, as they may be found; no two were asked for at the same time."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        rank = draw(st.sampled_from(Rank))
        is_loaded = rank == Rank.LEAVING or draw(st.booleans())
        found.append(Claim(("m", number), rank, draw(st.integers(1, 50)), number, is_loaded))
    return draw(st.permutations(found))


budgets = st.integers(0, 150)


@given(claims(), budgets)
def test_nobody_gets_a_place_beyond_the_budget_but_what_is_pinned(
    found: list[Claim], budget: int
) -> None:
    result = plan(found, budget)
    placed = [c for c in found if c.key in {*result.admitted, *result.waiting}]
    if not all(c.is_pinned for c in placed):
        assert sum(c.need_bytes for c in placed) <= budget
    assert result.is_over == (sum(c.need_bytes for c in found if c.is_pinned) > budget)


@given(claims(), budgets)
def test_what_serves_is_always_admitted_and_never_makes_room(
    found: list[Claim], budget: int
) -> None:
    result = plan(found, budget)
    pinned = {c.key for c in found if c.is_pinned}
    assert pinned <= result.admitted
    assert not pinned & set(result.evicted)
    assert not set(result.evicted) & result.admitted


@given(claims(), budgets)
def test_nothing_is_loaded_beside_what_has_not_left_yet_where_both_do_not_fit(
    found: list[Claim], budget: int
) -> None:
    result = plan(found, budget)
    newcomers = [c for c in found if c.key in result.admitted and not c.is_loaded]
    there = [c for c in found if c.is_loaded]
    assert result.planned_bytes == sum(c.need_bytes for c in [*newcomers, *there])
    if any(not c.is_pinned for c in newcomers):
        assert result.planned_bytes <= budget


@given(claims(), budgets)
def test_the_one_that_was_asked_for_longest_ago_makes_room(found: list[Claim], budget: int) -> None:
    result = plan(found, budget)
    kept = [c for c in found if c.key in {*result.admitted, *result.waiting}]
    for claim in (c for c in found if c.key in result.evicted and c.rank == Rank.HELD):
        before = [c for c in kept if c.rank != Rank.HELD or c.asked > claim.asked]
        assert sum(c.need_bytes for c in before) + claim.need_bytes > budget


@given(claims(), budgets)
def test_once_all_has_left_that_is_to_leave_all_that_waited_are_admitted(
    found: list[Claim], budget: int
) -> None:
    result = plan(found, budget)
    left = {c.key for c in found if c.rank == Rank.LEAVING} | set(result.evicted)
    rest = [c for c in found if c.key not in left and c.key not in result.refused]
    again = plan([replace(c, is_loaded=c.key in result.admitted) for c in rest], budget)
    assert again.admitted == result.admitted | set(result.waiting)
    assert not again.waiting


def test_it_says_what_it_needs_and_what_there_is() -> None:
    serving = Claim(("acme.demo", 1), Rank.SERVING, 3 * GIB, is_loaded=True)
    pending = Claim(("acme.demo", 2), Rank.PENDING, 2 * GIB)
    result = plan([serving, pending], 4 * GIB)
    assert result.refused == {
        ("acme.demo", 2): "it needs 2.00 GiB of memory, and 3.00 GiB of the endpoint's 4.00 GiB "
        "are for what serves or comes before it"
    }


def test_a_version_needs_its_weights_its_cache_and_a_process_for_each_instance() -> None:
    settings = EngineSettings(cache_gibibytes=1)
    one = need_bytes(100 * MIB, settings, Serving())
    assert one == 256 * MIB + 120 * MIB + GIB
    assert need_bytes(100 * MIB, settings, Serving(instance_count=2)) == 2 * one
    assert need_bytes(100 * MIB, settings, Serving(cache_gibibytes=3)) == one + 2 * GIB


def test_only_what_is_not_in_use_makes_room_for_what_somebody_asks_for() -> None:
    serving = Claim(("m", 1), Rank.SERVING, 2, is_loaded=True)
    held = Claim(("m", 2), Rank.HELD, 2, asked=100.0, is_loaded=True)
    memory = Memory("triton:8001", 4, (serving, held))
    wanted = Claim(("m", 3), Rank.HELD, 2)
    assert room_for_held(memory, wanted, in_use_since=100.0) == ""
    assert "are in use" in room_for_held(memory, wanted, in_use_since=99.0)
    assert room_for_held(memory, replace(wanted, key=("m", 2), need_bytes=9), 99.0) == ""
