"""Whose turn it is: examples, and any number of tenants that come and go."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import hypothesis.strategies as st
from hypothesis import given, settings

from millrace_gateway.batches.turns import Place, Standing, Waiting, leaving, next_tenant

TURN = timedelta(seconds=10)
START = datetime(2030, 1, 1, tzinfo=UTC)
TENANTS = ("a", "b", "c", "d")
MOMENTS = st.integers(0, 40).map(lambda seconds: START + timedelta(seconds=seconds))
NOW = START + timedelta(seconds=40)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_free_place_goes_to_whom_has_fewest_and_was_served_longest_ago() -> None:
    a, b = Waiting("a", at(0), at(2)), Waiting("b", at(9), at(1))
    assert next_tenant(Standing([], [])) is None
    assert next_tenant(Standing([], [a, b])) == "b"
    assert next_tenant(Standing([Place("batch-1", "b", at(1))], [a, b])) == "a"
    never = Waiting("c", at(20), None)
    assert next_tenant(Standing([], [a, b, never])) == "c"


def test_who_holds_most_makes_room_for_whom_has_none() -> None:
    places = [Place("batch-1", "a", at(0)), Place("batch-2", "a", at(1))]
    waiting = [Waiting("b", at(5), None)]
    assert leaving(Standing(places, waiting), TURN, at(14)) == frozenset()
    assert leaving(Standing(places, waiting), TURN, at(15)) == {"batch-1"}
    served = [Waiting("b", at(5), at(13))]
    assert leaving(Standing(places, served), TURN, at(22)) == frozenset()
    has_one = [*places, Place("batch-3", "b", at(2))]
    assert leaving(Standing(has_one, waiting), TURN, at(60)) == frozenset()
    has_longest = [*places, Place("batch-0", "c", at(-9))]
    assert leaving(Standing(has_longest, waiting), TURN, at(15)) == {"batch-1"}
    two = [*waiting, Waiting("c", at(5), None)]
    assert leaving(Standing(places, two), TURN, at(15)) == {"batch-1", "batch-2"}


def test_a_turn_is_not_cut_short() -> None:
    places = [Place("batch-1", "a", at(30)), Place("batch-2", "a", at(33))]
    waiting = [Waiting("b", at(0), None)]
    assert leaving(Standing(places, waiting), TURN, at(39)) == frozenset()
    assert leaving(Standing(places, waiting), TURN, at(40)) == {"batch-1"}


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    owners = draw(st.lists(st.sampled_from(TENANTS[:3]), min_size=2, max_size=6))
    places = [Place(f"batch-{n}", owner, draw(MOMENTS)) for n, owner in enumerate(owners)]
    waiting = [
        Waiting(tenant, draw(MOMENTS), draw(st.none() | MOMENTS))
        for tenant in draw(st.sets(st.sampled_from(TENANTS)))
    ]
    return Standing(places, waiting)


@settings(max_examples=300)
@given(standings())
def test_who_leaves_and_who_is_next(standing: Standing) -> None:
    gone = leaving(standing, TURN, NOW)
    held = Counter(place.tenant for place in standing.places)
    without = [one for one in standing.waiting if not held[one.tenant]]
    assert len(gone) <= len(without)
    leavers = [place for place in standing.places if place.batch_id in gone]
    assert all(NOW - place.since >= TURN for place in leavers)
    after = held - Counter(place.tenant for place in leavers)
    for place in leavers:
        # Whoever stays holds no more than who left held with the place that is gone.
        assert max(after.values(), default=0) <= after[place.tenant] + 1
    chosen = next_tenant(standing)
    assert (chosen is None) == (not standing.waiting)
    if chosen is not None:
        assert held[chosen] == min(held[one.tenant] for one in standing.waiting)


@dataclass
class Job:
    """A batch that needs so many seconds of a place."""

    id: str
    tenant: str
    made: datetime
    left_seconds: int
    since: datetime | None = None


@dataclass
class Schedule:
    """Places and batches by these rules, second by second.

    Attributes:
        idle: for how many seconds now a tenant has waited and had no place at all.
    """

    count: int
    jobs: list[Job] = field(default_factory=list)
    served: dict[str, datetime] = field(default_factory=dict)
    idle: Counter[str] = field(default_factory=Counter)

    def standing(self) -> Standing:
        places = [Place(job.id, job.tenant, job.since) for job in self.jobs if job.since]
        made: dict[str, datetime] = {}
        for job in self.jobs:
            if job.since is None:
                made[job.tenant] = min(job.made, made.get(job.tenant, job.made))
        waiting = [Waiting(one, since, self.served.get(one)) for one, since in made.items()]
        return Standing(places, waiting)

    def second(self, now: datetime) -> None:
        for job in self.jobs:
            if job.since is not None:
                job.left_seconds -= 1
        self.jobs = [job for job in self.jobs if job.left_seconds > 0]
        gone = leaving(self.standing(), TURN, now)
        for job in self.jobs:
            if job.id in gone:
                job.since = None
        while len(self.standing().places) < self.count:
            tenant = next_tenant(self.standing())
            if tenant is None:
                break
            self._start(tenant, now)
        held = {place.tenant for place in self.standing().places}
        without = {one.tenant for one in self.standing().waiting} - held
        self.idle = Counter({tenant: self.idle[tenant] + 1 for tenant in without})

    def _start(self, tenant: str, now: datetime) -> None:
        job = next(job for job in self.jobs if job.tenant == tenant and job.since is None)
        job.since = self.served[tenant] = now


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from(TENANTS), st.integers(1, 80)), max_size=12
)


@settings(deadline=None)
@given(count=st.integers(1, 3), arrivals=ARRIVALS)
def test_nobody_waits_for_more_than_a_round(
    count: int, arrivals: Sequence[tuple[int, str, int]]
) -> None:
    """However long the others' batches are, and all work is done, with no place left empty."""
    schedule = Schedule(count)
    needed = sum(seconds for _, _, seconds in arrivals)
    longest = (len(TENANTS) + 1) * (TURN.seconds + 1)
    for second in range(61 + needed):
        now = at(second)
        schedule.jobs += [
            Job(f"batch-{number:02}", tenant, now, seconds)
            for number, (moment, tenant, seconds) in enumerate(arrivals)
            if moment == second
        ]
        schedule.second(now)
        assert max(schedule.idle.values(), default=0) <= longest
        standing = schedule.standing()
        assert not standing.waiting or len(standing.places) == count
    assert not schedule.jobs
