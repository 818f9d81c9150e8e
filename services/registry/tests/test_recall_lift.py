"""Lifting recalls: what one alone kept out may be rolled out again, and nothing serves by it."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recall_builders import (
    ACME,
    BAD,
    GOOD,
    LOOKS,
    at_once,
    known,
    learnt,
    outcomes,
    recall,
    serve,
    serving,
)
from registry_builders import World

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import RequestKey, VersionState
from millrace_registry.recall import Action, Cause, Outcome, Recall, Sought, is_recalls
from millrace_registry.recall_looks import Held, RecallLooks, Search
from millrace_registry.recall_watch import RecallWatch
from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition
from millrace_testkit.clock import FakeClock

STANDING = [Action.QUARANTINE, Action.ROLL_BACK]


def lift(world: World, made: Recall) -> Recall:
    lifted = world.recalls.lift("acme", made.id, "the author agrees")
    assert lifted is not None
    return lifted


def roll_out(world: World, number: int) -> None:
    world.app.create_rollout("acme", "demo", number, RequestKey("", ""), "")
    world.look(LOOKS)


@pytest.mark.parametrize("action", STANDING)
def test_what_it_kept_out_serves_again_by_a_rollout_alone(any_world: World, action: Action) -> None:
    serve(any_world, GOOD, BAD)
    made = recall(any_world, action)
    lifted = lift(any_world, made)
    assert not lifted.stands
    assert any_world.version(2).state == VersionState.RETIRED
    assert any_world.version(2).state_reason.startswith(f"{made.id} was lifted")
    any_world.look(LOOKS)
    assert (serving(any_world), any_world.shares()) == (1, {1: 1.0})
    (released,) = any_world.messages(events_pb2.VersionReleased)
    assert (released.version, released.reason) == (
        any_world.version(2).name,
        "the author agrees",
    )
    (fact,) = any_world.messages(events_pb2.RecallLifted)
    assert (fact.recall, list(fact.versions)) == (made.name, [released.version])
    roll_out(any_world, 2)
    assert serving(any_world) == 2
    assert any_world.version(2).state_reason == ""


def test_nobody_has_what_was_released_for_a_successor(world: World) -> None:
    serve(world, BAD, GOOD)
    lift(world, recall(world, Action.QUARANTINE))
    world.app.quarantine("acme", "demo", 2, "broken")
    assert serving(world) == 0


@pytest.mark.parametrize("action", STANDING)
def test_what_was_never_served_is_as_it_was_registered(world: World, action: Action) -> None:
    serve(world, GOOD)
    made = recall(world, action)
    learnt(world, 2, BAD)
    world.finish(2)
    world.look(LOOKS)
    lift(world, made)
    version = world.version(2)
    assert (version.state, version.state_reason) == (VersionState.REGISTERED, "")
    world.look(LOOKS)
    assert (serving(world), world.rollout_states()) == (1, ["SETTLED"])
    roll_out(world, 2)
    assert serving(world) == 2


def test_what_is_made_of_it_after_that_serves(world: World) -> None:
    serve(world, GOOD)
    lift(world, recall(world, Action.QUARANTINE))
    learnt(world, 2, BAD)
    world.finish(2)
    world.look(LOOKS)
    assert serving(world) == 2


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("other", STANDING)
def test_what_another_recall_keeps_out_stays_so(world: World, first: int, other: Action) -> None:
    serve(world, GOOD, BAD)
    both = [recall(world, Action.QUARANTINE), recall(world, other)]
    lift(world, both[first])
    left = both[1 - first]
    assert world.version(2).state == VersionState.QUARANTINED
    assert world.version(2).state_reason == left.why
    assert world.messages(events_pb2.VersionReleased) == []
    with pytest.raises(FailedPrecondition):
        roll_out(world, 2)
    lift(world, left)
    roll_out(world, 2)
    assert serving(world) == 2


def test_a_recall_that_has_not_met_what_a_stricter_one_kept_out_meets_it(world: World) -> None:
    serve(world, GOOD)
    milder, stricter = (recall(world, action) for action in reversed(STANDING))
    learnt(world, 2, BAD)
    world.finish(2)
    found = world.recalls.get("acme", milder.id)
    assert found is not None
    assert outcomes(found) == {}
    lift(world, stricter)
    found = world.recalls.get("acme", milder.id)
    assert found is not None
    assert outcomes(found) == {("demo", 2): Outcome.OUT_ALREADY}
    assert world.version(2).state_reason == milder.why
    lift(world, milder)
    assert world.version(2).state == VersionState.REGISTERED


def test_what_a_person_took_out_stays_out(world: World) -> None:
    serve(world, GOOD, BAD, BAD)
    world.app.quarantine("acme", "demo", 2, "broken")
    made = recall(world, Action.QUARANTINE)
    assert world.app.quarantine("acme", "demo", 3, "broken too").state_reason == "broken too"
    assert world.app.quarantine("acme", "demo", 2, "once more").state_reason == "broken"
    lift(world, made)
    for number in (2, 3):
        assert world.version(number).state == VersionState.QUARANTINED
    assert world.messages(events_pb2.VersionReleased) == []


def test_lifting_twice_is_lifting_once_and_a_report_has_nothing_to_lift(world: World) -> None:
    serve(world, GOOD, BAD)
    made = recall(world, Action.QUARANTINE)
    first = lift(world, made)
    facts = world.facts()
    world.clock.advance(60)
    assert world.recalls.lift("acme", made.id, "again") == first
    assert world.facts() == facts
    with pytest.raises(FailedPrecondition) as caught:
        lift(world, recall(world, Action.REPORT))
    assert caught.value.reason == "RECALL_REPORTED"
    assert world.recalls.lift("acme", "recall-none", "") is None
    assert world.recalls.lift("umbrella", made.id, "") is None


# A history of versions, recalls by dataset and by row, liftings and quarantines by hand.
ROW = "sha256:" + "1" * 64
HOLDS_ROW, ELSEWHERE = f"{ACME}/datasets/holds-the-row", f"{ACME}/datasets/elsewhere"
DATASETS = {"good": GOOD, "bad": BAD, "row": HOLDS_ROW}
STEPS = st.lists(
    st.sampled_from([("version", name) for name in DATASETS])
    | st.tuples(st.sampled_from(STANDING), st.sampled_from(["bad", "row"]))
    | st.tuples(st.just("lift"), st.integers(0, 2))
    | st.tuples(st.just("quarantine"), st.integers(1, 3)),
    min_size=2,
    max_size=9,
)


class OneRow:
    """The data service, which knows one dataset with the row."""

    def held(self, search: Search) -> Held:
        names = [name for name in search.names if name == HOLDS_ROW]
        return Held(tuple(Cause(name, row_count=1, hashes=(ROW,)) for name in names))


class History:
    """A world, and what should hold in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        looks = RecallLooks(world.database)
        self._watch = RecallWatch(world.recalls, looks, OneRow(), 1, ring=lambda: None)
        self._learnt: dict[int, str] = {}
        self._standing: list[tuple[Recall, Action, str]] = []
        self._by_hand: set[int] = set()
        at_once(world)

    def take(self, kind: object, what: object) -> None:
        before = serving(self.world)
        if kind == "version":
            self._add(str(what))
        elif isinstance(kind, Action):
            by_row = what == "row"
            sought = Sought((ROW,)) if by_row else Sought()
            causes = [Cause(ELSEWHERE)] if by_row else []
            made = recall(self.world, kind, *causes, sought=sought)
            self._standing.append((made, kind, str(what)))
        elif kind == "lift" and len(self._standing) > int(str(what)):
            against_it = self._against(before)
            lift(self.world, self._standing.pop(int(str(what)))[0])
            assert serving(self.world) == before or against_it
        elif kind == "quarantine" and int(str(what)) in self._learnt:
            self.world.app.quarantine("acme", "demo", int(str(what)), "by hand")
            self._by_hand.add(int(str(what)))
        self._watch.look()
        self.world.look(LOOKS)
        self.check()

    def check(self) -> None:
        for number in known(self.world):
            version, against = self.world.version(number), self._against(number)
            is_out = version.state == VersionState.QUARANTINED
            assert is_out or not (number in self._by_hand or Action.QUARANTINE in against)
            assert not is_out or number in self._by_hand or against
            assert against or not is_recalls(version.state_reason)
            if against and version.state == VersionState.SERVING:
                assert self._has_no_successor(number)
        served = serving(self.world)
        assert served == 0 or self.world.version(served).state == VersionState.SERVING

    def _add(self, name: str) -> None:
        number = len(self._learnt) + 1
        learnt(self.world, number, DATASETS[name])
        self.world.finish(number)
        self._learnt[number] = name

    def _against(self, number: int) -> Sequence[Action]:
        return [action for _, action, by in self._standing if by == self._learnt.get(number)]

    def _has_no_successor(self, number: int) -> bool:
        found = (self.world.recalls.get("acme", made.id) for made, _, _ in self._standing)
        kept = [outcomes(each).get(("demo", number)) for each in found if each is not None]
        return Outcome.NO_SUCCESSOR in kept


@given(steps=STEPS)
@settings(max_examples=12, deadline=None)
def test_recalls_that_come_and_go_leave_out_what_they_should_and_no_more(
    steps: list[tuple[object, object]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    database = open_database(f"sqlite:///{folder}/registry.db")
    try:
        history = History(World(database, folder, FakeClock()))
        for kind, what in steps:
            history.take(kind, what)
    finally:
        database.close()
