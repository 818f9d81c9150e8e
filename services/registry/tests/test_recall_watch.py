"""Standing recalls look for their rows in what is learnt from later: none is missed, none twice."""

import threading
from dataclasses import dataclass, field

import pytest
from recall_builders import ACME, BAD, GOOD, LOOKS, deliver, learnt, recall, serve, serving
from registry_builders import World

from millrace.registry.v1 import events_pb2
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_registry.domain import LineageNode, VersionState
from millrace_registry.recall import Action, Cause, Sought
from millrace_registry.recall_looks import Held, RecallLooks, Search
from millrace_registry.recall_store import WatchedLineage
from millrace_registry.recall_watch import RecallWatch
from millrace_runtime.errors import InvalidArgument, Unavailable

ROW, OTHER_ROW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
ROWS = Sought((ROW,))
LATER = f"{ACME}/datasets/later"


@dataclass
class FakeRows:
    """The data service: which rows each file and dataset holds."""

    rows: dict[str, set[str]] = field(default_factory=dict)
    heldout: set[str] = field(default_factory=set)
    unindexed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    away: bool = False
    asked: list[str] = field(default_factory=list)

    def held(self, search: Search) -> Held:
        if self.away:
            raise Unavailable("nobody listens", reason="UPSTREAM_ERROR")
        if search.recall in self.refused:
            raise InvalidArgument("there is no file f", field="file")
        self.asked += search.names
        causes = [
            Cause(name, "", name in self.heldout, len(found), tuple(found))
            for name in search.names
            if (found := sorted(self.rows.get(name, set()) & set(search.sought.hashes)))
        ]
        return Held(tuple(causes), tuple(n for n in search.names if n in self.unindexed))


@pytest.fixture
def rows() -> FakeRows:
    return FakeRows({LATER: {ROW, OTHER_ROW}})


def watch_of(world: World, rows: FakeRows, rung: list[str] | None = None) -> RecallWatch:
    looks, told = RecallLooks(world.database), [] if rung is None else rung
    return RecallWatch(world.recalls, looks, rows, 3600, ring=lambda: told.append("rung"))


def test_a_version_that_serves_is_found_by_the_row_in_its_dataset(
    any_world: World, rows: FakeRows
) -> None:
    serve(any_world, GOOD)
    made = recall(any_world, Action.QUARANTINE, sought=ROWS)
    learnt(any_world, 2, LATER)
    any_world.finish(2)
    any_world.look(LOOKS)
    assert serving(any_world) == 2  # nobody has looked into its dataset yet
    rung: list[str] = []
    watch = watch_of(any_world, rows, rung)
    watch.look()
    any_world.look(LOOKS)
    assert (serving(any_world), any_world.shares()) == (1, {1: 1.0})
    assert any_world.version(2).state == VersionState.QUARANTINED
    (fact,) = any_world.messages(events_pb2.RecallExtended)
    assert (fact.recall, fact.cause, fact.row_count) == (made.name, LATER, 1)
    found = any_world.recalls.get("acme", made.id)
    assert found is not None
    joined = {cause.name: cause.join_time is not None for cause in found.causes}
    assert joined == {BAD: False, LATER: True}
    watch.look()
    assert (rows.asked, rung) == ([GOOD, LATER], ["rung"])


def test_what_is_made_of_it_after_that_never_serves(world: World, rows: FakeRows) -> None:
    serve(world, GOOD)
    recall(world, Action.ROLL_BACK, sought=ROWS)
    learnt(world, 2, LATER)
    watch_of(world, rows).look()
    world.finish(2)
    world.look(LOOKS)
    assert (serving(world), world.rollout_states()) == (1, ["SETTLED"])


def test_what_was_built_while_the_recall_was_made_is_looked_into_too(
    world: World, rows: FakeRows
) -> None:
    """Its fact came before the recall, and the question which datasets hold the row before it."""
    serve(world, GOOD, LATER)
    recall(world, Action.QUARANTINE, sought=ROWS)
    assert serving(world) == 2
    watch_of(world, rows).look()
    assert serving(world) == 1


def test_nothing_is_forgotten_while_the_data_service_is_away(world: World, rows: FakeRows) -> None:
    serve(world, GOOD, LATER)
    recall(world, Action.QUARANTINE, sought=ROWS)
    rows.away = True
    with pytest.raises(Unavailable):
        watch_of(world, rows).look()
    rows.away = False
    watch_of(world, rows).look()
    assert serving(world) == 1


def test_one_recall_that_cannot_look_does_not_keep_others_from_it(
    world: World, rows: FakeRows
) -> None:
    serve(world, GOOD, LATER)
    rows.refused = {recall(world, Action.QUARANTINE, sought=Sought(file=f"{ACME}/files/f")).id}
    recall(world, Action.QUARANTINE, sought=ROWS)
    watch_of(world, rows).look()
    assert serving(world) == 1


def test_rows_that_are_held_out_judged_and_were_not_learnt(world: World, rows: FakeRows) -> None:
    serve(world, GOOD, LATER)
    made = recall(world, Action.QUARANTINE, sought=ROWS)
    rows.heldout = {LATER}
    watch_of(world, rows).look()
    assert serving(world) == 2
    found = world.recalls.get("acme", made.id)
    assert found is not None
    assert [(c.name, c.is_heldout) for c in found.causes] == [(BAD, False), (LATER, True)]


def test_what_nobody_can_look_into_is_named(world: World, rows: FakeRows) -> None:
    serve(world, GOOD)
    made = recall(world, Action.QUARANTINE, sought=ROWS)
    rows.unindexed = {GOOD}
    watch_of(world, rows).look()
    found = world.recalls.get("acme", made.id)
    assert found is not None
    assert found.unindexed == (GOOD,)


def test_two_registries_that_find_the_same_find_it_once(any_world: World) -> None:
    serve(any_world, GOOD, LATER)
    made = recall(any_world, Action.QUARANTINE, sought=ROWS)
    search = RecallLooks(any_world.database).next("acme", made.id)
    assert search is not None
    assert search.names == (GOOD, LATER)
    held = Held((Cause(LATER, row_count=1, hashes=(ROW,)),))
    assert any_world.recalls.join(search, held)
    facts = any_world.facts()
    assert not any_world.recalls.join(search, held)
    assert any_world.facts() == facts


@pytest.mark.parametrize("action", list(Action))
def test_only_recalls_that_stand_and_know_their_rows_look(
    world: World, rows: FakeRows, action: Action
) -> None:
    serve(world, GOOD, LATER)
    without = recall(world, action)
    made = recall(world, action, sought=ROWS)
    looks = RecallLooks(world.database)
    stands = action != Action.REPORT
    assert looks.standing() == ([("acme", made.id)] if stands else [])
    search = Search("acme", made.id, ROWS, (LATER,))
    if stands:
        world.recalls.lift("acme", made.id, "")
    assert not world.recalls.join(search, Held((Cause(LATER),)))
    assert looks.standing() == []
    assert looks.next("acme", made.id) is None
    assert looks.next("acme", without.id) is None
    assert serving(world) == 2


def test_a_file_that_is_tuned_on_is_looked_into_before_the_job_has_ended(
    world: World, rows: FakeRows
) -> None:
    rung: list[str] = []
    lineage = WatchedLineage(
        world.lineage, world.recalls, lambda: None, lambda: rung.append("watch")
    )
    file, job = f"{ACME}/files/later", f"{ACME}/jobs/j"
    lineage.add([LineageNode(job, "job")], [])
    assert rung == []
    lineage.add([LineageNode(file, "file")], [])
    assert rung == ["watch"]
    recall(world, Action.QUARANTINE, sought=ROWS)
    base = f"{ACME}/models/demo/versions/1"
    deliver(world, tuner_events.JobStarted(job=job, base_version=base, training_file=file))
    watch_of(world, rows).look()
    assert rows.asked == [file]


def test_it_looks_when_it_is_rung_and_ends_when_it_drains(world: World, rows: FakeRows) -> None:
    serve(world, GOOD, LATER)
    recall(world, Action.QUARANTINE, sought=ROWS)
    found = threading.Event()
    watch = RecallWatch(world.recalls, RecallLooks(world.database), rows, 3600, ring=found.set)
    rows.away = True
    thread = threading.Thread(target=watch.run)
    thread.start()
    rows.away = False
    watch.ring()
    assert found.wait(60)
    watch.drain()
    thread.join(60)
    assert not thread.is_alive()
    assert serving(world) == 1
