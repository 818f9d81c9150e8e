"""Recalls: from what holds a row to the versions that learnt from it, and out of service."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recall_builders import (
    ACME,
    BAD,
    DIGEST,
    FILE,
    GOOD,
    LOOKS,
    at_once,
    deliver,
    known,
    learnt,
    outcomes,
    recall,
    serve,
    serving,
)
from registry_builders import World

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import events_pb2 as data_events
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import events_pb2, service_pb2
from millrace.registry.v1 import recalls_pb2 as pb
from millrace.registry.v1.recalls_pb2_grpc import RecallServiceStub
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_registry.domain import (
    HoldRule,
    LineageNode,
    RequestKey,
    VersionState,
)
from millrace_registry.recall import Action, Cause, Outcome
from millrace_registry.recall_api import RecallServicer
from millrace_registry.recall_app import RecallApp
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.clock import FakeClock


def test_a_report_says_what_is_live_and_changes_nothing(world: World) -> None:
    serve(world, BAD, GOOD, BAD)
    world.catalogue.hold(world.version(1), HoldRule())
    made = recall(world, Action.REPORT)
    assert outcomes(made) == {("demo", 1): Outcome.REPORTED, ("demo", 3): Outcome.REPORTED}
    states = {v.met.number: (v.state.value, v.is_live) for v in made.versions}
    assert states == {1: ("RETIRED", True), 3: ("SERVING", True)}
    kinds = {node.kind for node in made.nodes}
    assert kinds == {"dataset", "run", "checkpoint", "compression", "version", "deployment"}
    assert serving(world) == 3
    world.finish(4)
    learnt(world, 4, BAD)
    world.look(LOOKS)
    assert serving(world) == 4


def test_the_newest_clean_version_serves_instead(any_world: World) -> None:
    serve(any_world, GOOD, GOOD, BAD, BAD)
    serve(any_world, GOOD, model="other")
    made = recall(any_world, Action.QUARANTINE)
    assert outcomes(made) == {("demo", 3): Outcome.QUARANTINED, ("demo", 4): Outcome.QUARANTINED}
    assert serving(any_world) == 2
    assert any_world.version(2).state == VersionState.SERVING
    found = any_world.catalogue.model("acme", "demo")
    assert found is not None
    assert found.aliases == {"champion": 2}
    facts = any_world.messages(events_pb2.VersionQuarantined)
    assert [(fact.version[-1], fact.recall) for fact in facts] == [
        ("3", made.name),
        ("4", made.name),
    ]
    assert any_world.version(4).state_reason == f"recalled by {made.id}: asked by its author"
    any_world.look(LOOKS)
    assert any_world.shares() == {2: 1.0}
    assert serving(any_world, "other") == 1


def test_where_all_learnt_from_it_nothing_serves(world: World) -> None:
    serve(world, BAD, BAD)
    recall(world, Action.QUARANTINE)
    assert serving(world) == 0
    world.look(LOOKS)
    assert world.shares() == {}


def test_rolling_back_moves_serving_alone(world: World) -> None:
    serve(world, GOOD, BAD, BAD)
    made = recall(world, Action.ROLL_BACK)
    assert set(outcomes(made).values()) == {Outcome.ROLLED_BACK}
    assert serving(world) == 1
    assert world.version(3).state == VersionState.RETIRED
    assert not world.version(3).may_be_held
    with pytest.raises(FailedPrecondition) as caught:
        world.app.create_rollout("acme", "demo", 3, RequestKey("", ""), "")
    assert caught.value.reason == "VERSION_RECALLED"
    facts = world.messages(events_pb2.VersionRecalled)
    assert [(fact.version[-1], fact.successor) for fact in facts] == [("2", 0), ("3", 1)]
    world.app.quarantine("acme", "demo", 1, "broken")
    assert serving(world) == 0


def test_it_cannot_roll_back_to_what_is_not_there(world: World) -> None:
    serve(world, BAD, BAD)
    made = recall(world, Action.ROLL_BACK)
    assert outcomes(made) == {
        ("demo", 1): Outcome.ROLLED_BACK,
        ("demo", 2): Outcome.NO_SUCCESSOR,
    }
    assert serving(world) == 2
    assert world.version(2).state == VersionState.SERVING
    learnt(world, 3, GOOD)
    world.finish(3)
    world.look(LOOKS)
    assert serving(world) == 3
    world.app.quarantine("acme", "demo", 3, "broken")
    assert serving(world) == 0


@pytest.mark.parametrize("action", [Action.QUARANTINE, Action.ROLL_BACK])
def test_a_rollout_under_way_is_reversed(world: World, action: Action) -> None:
    serve(world, GOOD)
    learnt(world, 2, BAD)
    world.finish(2)
    world.look(1)
    assert world.version(2).state == VersionState.ROLLING_OUT
    (met,) = (v.met for v in recall(world, action).versions)
    assert (met.state_before, met.was_live) == (VersionState.ROLLING_OUT, True)
    assert world.rollout_states()[-1] == "REVERSED"
    world.look(LOOKS)
    assert (serving(world), world.shares()) == (1, {1: 1.0})


@pytest.mark.parametrize("action", [Action.QUARANTINE, Action.ROLL_BACK])
@pytest.mark.parametrize("is_late", [False, True])
def test_what_is_made_of_it_later_is_not_served(
    world: World, action: Action, is_late: bool
) -> None:
    serve(world, GOOD)
    made = recall(world, action)
    again = f"{ACME}/datasets/of-the-same-content"
    if not is_late:
        learnt(world, 2, again)
        world.app.learn([LineageNode(again, "dataset", DIGEST)], [])
    world.finish(2)
    if is_late:
        learnt(world, 2, again)
        world.look(3)
        world.app.learn([LineageNode(again, "dataset", DIGEST)], [])
    world.look(LOOKS)
    assert (serving(world), world.shares()) == (1, {1: 1.0})
    assert not world.version(2).may_be_held
    assert "recalled by" in world.version(2).state_reason
    assert (world.version(2).state == VersionState.QUARANTINED) == (action == Action.QUARANTINE)
    found = world.recalls.get("acme", made.id)
    assert found is not None
    assert [v.met.number for v in found.versions] == [2]


def test_what_is_held_out_judged_and_was_not_learnt(world: World) -> None:
    serve(world, BAD)
    made = recall(world, Action.QUARANTINE, Cause(BAD, DIGEST, is_heldout=True, row_count=2))
    assert (made.versions, made.nodes) == ((), ())
    assert made.causes[0].is_heldout
    assert serving(world) == 1
    world.finish(2)
    learnt(world, 2, BAD)
    world.look(LOOKS)
    assert serving(world) == 2


def test_a_request_sent_twice_is_one_recall(any_world: World) -> None:
    serve(any_world, GOOD, BAD)
    first = recall(any_world, Action.QUARANTINE, request="r")
    facts = any_world.facts()
    assert recall(any_world, Action.QUARANTINE, request="r") == first
    assert any_world.facts() == facts
    with pytest.raises(AlreadyExists):
        recall(any_world, Action.QUARANTINE, Cause(GOOD), request="r")
    again = recall(any_world, Action.QUARANTINE)
    assert set(outcomes(again).values()) == {Outcome.OUT_ALREADY}
    assert any_world.facts() == facts


def artifact_fact(world: World, name: str, model: str, checkpoint: str) -> object:
    artifact = world.artifact(name)
    return compressor_events.ArtifactFinished(
        compression=f"{ACME}/compressions/{name}",
        checkpoint=compressor_pb2.CheckpointReference(name=checkpoint, model=model, step=5),
        target=compressor_pb2.TARGET_OPENVINO_INT8,
        artifact=lifecycle_pb2.Content(
            uri=artifact.uri, digest=artifact.digest, size_bytes=artifact.size_bytes
        ),
        measurements=compressor_pb2.Measurements(original_perplexity=10.0),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_facts_lead_from_rows_to_what_serves_them(world: World, order: int) -> None:
    """dataset → run → checkpoint → compression → version → deployment, and version and file →
    job → checkpoint → …: a model tuned on what is clean saw what its base saw."""
    run, job = f"{ACME}/runs/r", f"{ACME}/jobs/j"
    trained, tuned = f"{run}/checkpoints/c", f"{job}/checkpoints/c"
    base, child = f"{ACME}/models/demo/versions/1", "ft:demo:acme::x"
    content = lifecycle_pb2.Content(uri="file:///c", digest=DIGEST, size_bytes=1)
    facts = [
        data_events.DatasetReady(dataset=BAD, content=content),
        trainer_events.RunStarted(run=run, dataset=BAD, dataset_digest=DIGEST),
        trainer_events.CheckpointFinished(
            run=run, checkpoint=trained, model="demo", content=content
        ),
        artifact_fact(world, "one", "demo", trained),
        tuner_events.JobStarted(job=job, base_version=base),
        tuner_events.CheckpointFinished(
            job=job,
            checkpoint=tuned,
            base_version=base,
            training_file=FILE,
            training_file_digest="sha256:" + "f" * 64,
        ),
        artifact_fact(world, "two", child, tuned),
    ]
    deliver(world, *facts[::order])
    by_dataset = recall(world, Action.REPORT)
    assert set(outcomes(by_dataset)) == {("demo", 1), (child, 1)}
    steps = {(edge.cause, edge.effect) for edge in by_dataset.edges}
    (of_base, of_child) = (
        world.catalogue.ensure_deployment("acme", model) for model in ("demo", child)
    )
    assert of_base is not None
    assert of_child is not None
    tuned_version = f"{ACME}/models/{child}/versions/1"
    expected = {
        (BAD, run),
        (run, trained),
        (trained, f"{ACME}/compressions/one"),
        (f"{ACME}/compressions/one", base),
        (base, of_base.name),
        (base, job),
        (job, tuned),
        (tuned, f"{ACME}/compressions/two"),
        (f"{ACME}/compressions/two", tuned_version),
        (tuned_version, of_child.name),
    }
    assert steps == expected
    by_file = recall(world, Action.REPORT, Cause(FILE))
    assert set(outcomes(by_file)) == {(child, 1)}


def test_a_student_is_made_of_what_its_teachers_are_made_of(world: World) -> None:
    """A teacher and a judge are versions; a reward model is a checkpoint that is never served."""
    teacher, clean = f"{ACME}/models/demo/versions/1", f"{ACME}/models/clean/versions/1"
    reward_job, student_job = f"{ACME}/jobs/reward", f"{ACME}/jobs/student"
    reward, student = f"{reward_job}/checkpoints/r", f"{student_job}/checkpoints/s"
    taught_by = [teacher, reward]
    serve(world, BAD)
    deliver(
        world,
        tuner_events.JobStarted(job=reward_job, base_version=clean, training_file=FILE),
        tuner_events.JobStarted(job=student_job, base_version=clean, companions=taught_by),
        tuner_events.CheckpointFinished(
            job=student_job,
            checkpoint=student,
            base_version=clean,
            training_file=f"{ACME}/files/clean",
            companions=taught_by,
        ),
        artifact_fact(world, "of-student", "ft:demo:acme::s", student),
    )
    taught = ("ft:demo:acme::s", 1)
    assert outcomes(recall(world, Action.REPORT, Cause(FILE))) == {taught: Outcome.REPORTED}
    made = recall(world, Action.QUARANTINE)
    assert outcomes(made)[taught] == Outcome.QUARANTINED
    edges = {(edge.cause, edge.effect) for edge in made.edges}
    assert {(teacher, student_job), (student_job, student)} <= edges
    _, edges_of_student = world.app.lineage("acme", student)
    causes = {(edge.cause, edge.effect) for edge in edges_of_student}
    assert {(FILE, reward_job), (reward_job, reward), (reward, student_job)} <= causes


def test_a_dataset_that_was_tuned_on_is_known_by_its_own_digest(world: World) -> None:
    job = f"{ACME}/jobs/j"
    content = lifecycle_pb2.Content(uri="file:///c", digest=DIGEST, size_bytes=1)
    deliver(
        world,
        data_events.DatasetReady(dataset=BAD, content=content),
        tuner_events.CheckpointFinished(
            job=job,
            checkpoint=f"{job}/checkpoints/c",
            base_version=f"{ACME}/models/demo/versions/1",
            training_file=BAD,
            training_file_digest="sha256:" + "0" * 64,
        ),
    )
    assert world.lineage.find("acme", BAD) == LineageNode(BAD, "dataset", DIGEST)


# A history: which dataset each version learnt from, in the order in which they came, and which
# recalls came in between.
STEPS = st.lists(
    st.sampled_from(["good", "bad"]) | st.sampled_from([Action.QUARANTINE, Action.ROLL_BACK]),
    min_size=1,
    max_size=5,
)


@given(steps=STEPS)
@settings(max_examples=6, deadline=None)
def test_after_a_recall_nothing_that_learnt_from_it_comes_to_serve(
    steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    database = open_database(f"sqlite:///{folder}/registry.db")
    try:
        world = World(database, folder, FakeClock())
        at_once(world)
        bad: set[int] = set()
        is_recalled, served_before = False, 0
        for number, step in enumerate(steps, start=1):
            if isinstance(step, Action):
                has_clean = any(
                    world.version(n).state in (VersionState.RETIRED, VersionState.SERVING)
                    and not world.version(n).state_reason
                    for n in known(world) - bad
                )
                recall(world, step)
                is_recalled = True
                now = serving(world)
                assert now not in bad or (step == Action.ROLL_BACK and not has_clean)
                assert not has_clean or now != 0
            else:
                learnt(world, number, BAD if step == "bad" else GOOD)
                world.finish(number)
                if step == "bad":
                    bad.add(max(known(world)))
                world.look(LOOKS)
                now = serving(world)
                assert not (is_recalled and now in bad and now != served_before)
            served_before = serving(world)
            assert served_before == 0 or world.version(served_before).state == VersionState.SERVING
    finally:
        database.close()


@pytest.fixture
def stub(world: World) -> Iterator[RecallServiceStub]:
    app = RecallApp(world.recalls, ring=lambda: None, ring_controller=lambda: None, now=world.clock)
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[ServiceInterceptor(None)])
    RecallServicer(app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield RecallServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def test_a_recall_over_the_wire(world: World, stub: RecallServiceStub) -> None:
    serve(world, GOOD, BAD)
    cause = pb.RecallCause(name=BAD, digest=DIGEST, row_count=1, hashes=["sha256:" + "1" * 64])
    request = pb.CreateRecallRequest(
        parent=ACME,
        causes=[cause, pb.RecallCause(name=FILE, held_out=True)],
        action=pb.RECALL_ACTION_QUARANTINE,
        reason="why",
        unindexed=[GOOD],
    )
    made = call(stub.CreateRecall, request).recall
    assert cause in made.causes
    (version,) = made.versions
    assert version == pb.RecalledVersion(
        name=f"{ACME}/models/demo/versions/2",
        state_before=service_pb2.VERSION_STATE_SERVING,
        was_live=True,
        outcome=pb.RECALL_OUTCOME_QUARANTINED,
        successor=1,
        state=service_pb2.VERSION_STATE_QUARANTINED,
    )
    assert call(stub.GetRecall, pb.GetRecallRequest(name=made.name)).recall == made
    second = call(stub.CreateRecall, request).recall
    page = call(stub.ListRecalls, pb.ListRecallsRequest(parent=ACME, page_size=1))
    assert [found.name for found in page.recalls] == [second.name]
    rest = call(
        stub.ListRecalls, pb.ListRecallsRequest(parent=ACME, page_token=page.next_page_token)
    )
    assert [found.name for found in rest.recalls] == [made.name]
    assert not call(stub.ListRecalls, pb.ListRecallsRequest(parent="tenants/umbrella")).recalls
    for _ in range(2):
        lift = pb.LiftRecallRequest(name=second.name, reason="agreed")
        lifted = call(stub.LiftRecall, lift).recall
        assert lifted.HasField("lift_time")
        assert lifted.lift_reason == "agreed"
    assert call(stub.GetRecall, pb.GetRecallRequest(name=second.name)).recall == lifted


def test_what_cannot_be_recalled(stub: RecallServiceStub) -> None:
    for name in ("tenants/umbrella/files/f", f"{ACME}/models/demo"):
        request = pb.CreateRecallRequest(
            parent=ACME, causes=[pb.RecallCause(name=name)], action=pb.RECALL_ACTION_REPORT
        )
        with pytest.raises(InvalidArgument) as caught:
            call(stub.CreateRecall, request)
        assert caught.value.field == "causes[0].name"
    with pytest.raises(InvalidArgument, match="action"):
        call(stub.CreateRecall, pb.CreateRecallRequest(parent=ACME))
    with pytest.raises(NotFound):
        call(stub.GetRecall, pb.GetRecallRequest(name=f"{ACME}/recalls/none"))
    with pytest.raises(NotFound):
        call(stub.LiftRecall, pb.LiftRecallRequest(name=f"{ACME}/recalls/none"))
    report = pb.CreateRecallRequest(parent=ACME, action=pb.RECALL_ACTION_REPORT)
    reported = call(stub.CreateRecall, report).recall
    with pytest.raises(FailedPrecondition, match="keeps nothing out of service"):
        call(stub.LiftRecall, pb.LiftRecallRequest(name=reported.name))
    request = pb.CreateRecallRequest(
        parent=ACME, action=pb.RECALL_ACTION_QUARANTINE, file="tenants/umbrella/files/f"
    )
    with pytest.raises(InvalidArgument) as caught:
        call(stub.CreateRecall, request)
    assert caught.value.field == "file"
