"""The facts that the registry consumes, each through its own subscription."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.message import Message
from registry_builders import World

from millrace.compressor.v1 import events_pb2 as compressor_events
from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.data.v1 import events_pb2 as data_events
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import events_pb2
from millrace.topology import consumed_by, fact_of, produced_by
from millrace.trainer.v1 import events_pb2 as trainer_events
from millrace.tuner.v1 import events_pb2 as tuner_events
from millrace_registry.domain import RequestKey, VersionState
from millrace_registry.events import base_model_of, subscriptions
from millrace_registry.recall import Action, Cause, Recall, Sought
from millrace_registry.recall_looks import Held, Search
from millrace_runtime import names
from millrace_runtime.cloudevent import Event
from millrace_runtime.database import open_database
from millrace_testkit.clock import FakeClock

DATASET, RUN = "tenants/acme/datasets/d", "tenants/acme/runs/r"
TRAINED, JOB = f"{RUN}/checkpoints/demo-1", "tenants/acme/jobs/j"
TUNED, FILE = f"{JOB}/checkpoints/c", "tenants/acme/files/f"
VERSION = "tenants/acme/models/demo/versions/1"
DIGEST = "sha256:" + "d" * 64


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    """On SQLite: what both databases do alike is asserted in test_catalogue and test_control."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield World(database, tmp_path, clock)
    database.close()


def deliver(world: World, *facts: Message, tenant: str = "acme") -> None:
    """Hand facts to whoever subscribed to them, as the bus does."""
    handlers = {s.message: s.handle for s in subscriptions(world.app)}
    for fact in facts:
        event = Event(names.new_id("event"), fact_of(type(fact)), tenant, fact, world.clock())
        handlers[type(fact)](event)


def content(digest: str = DIGEST) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(uri="file:///c", digest=digest, size_bytes=1)


def lifecycle(world: World) -> Sequence[Message]:
    """All that leads to a version, and to a job that tunes it."""
    artifact = world.artifact("demo-1")
    return (
        data_events.DatasetReady(dataset=DATASET, content=content()),
        trainer_events.RunStarted(run=RUN, dataset=DATASET, dataset_digest=DIGEST),
        trainer_events.CheckpointFinished(
            run=RUN, checkpoint=TRAINED, model="demo", content=content()
        ),
        compressor_events.ArtifactFinished(
            compression="tenants/acme/compressions/x",
            checkpoint=compressor_pb2.CheckpointReference(name=TRAINED, model="demo", step=5),
            target=compressor_pb2.TARGET_OPENVINO_INT8,
            artifact=lifecycle_pb2.Content(
                uri=artifact.uri, digest=artifact.digest, size_bytes=artifact.size_bytes
            ),
            measurements=compressor_pb2.Measurements(original_perplexity=10.0),
        ),
        tuner_events.JobStarted(job=JOB, base_version=VERSION),
        tuner_events.CheckpointFinished(
            job=JOB,
            checkpoint=TUNED,
            base_version=VERSION,
            training_file=FILE,
            training_file_digest=DIGEST,
            content=content(),
        ),
    )


def test_an_artifact_becomes_a_version_as_its_fact_tells(world: World) -> None:
    deliver(world, *lifecycle(world))
    version = world.version(1)
    assert version.target == "TARGET_OPENVINO_INT8"
    assert version.checkpoint_name == TRAINED
    assert version.measurements == {"original_perplexity": 10.0}
    assert version.artifact == world.artifacts["demo-1"]
    assert version.state == VersionState.REGISTERED


def test_what_a_search_has_chosen_is_what_is_served(world: World) -> None:
    facts = lifecycle(world)
    artifact = facts[3]
    assert isinstance(artifact, compressor_events.ArtifactFinished)
    artifact.target = compressor_pb2.TARGET_AUTO
    artifact.chosen.target = compressor_pb2.TARGET_OPENVINO_INT4
    deliver(world, *facts)
    version = world.version(1)
    assert (version.target, version.state_reason) == ("TARGET_OPENVINO_INT4", "")


@pytest.mark.parametrize("order", [1, -1])
def test_the_whole_way_is_known_in_whatever_order_the_facts_come(world: World, order: int) -> None:
    facts = lifecycle(world)
    deliver(world, *facts[::order])
    deliver(world, *facts)
    nodes, _ = world.app.lineage("acme", VERSION)
    known = {node.name: node for node in nodes}
    assert {DATASET, RUN, TRAINED, VERSION, JOB, TUNED} < set(known)
    assert FILE not in known  # it led to the job, and not to this version
    assert known[DATASET].digest == DIGEST
    tuned, _ = world.app.lineage("acme", TUNED)
    assert {FILE, DATASET, JOB, VERSION} < {node.name for node in tuned}


def test_the_time_of_a_checkpoint_is_that_of_its_fact(world: World) -> None:
    *before, artifact, _, _ = lifecycle(world)
    deliver(world, *before)
    world.clock.advance(100)
    deliver(world, artifact)
    world.look(4)
    (settled,) = world.messages(events_pb2.RolloutSettled)
    assert 100 < settled.checkpoint_to_settled_seconds < 110


def test_facts_that_are_published_are_those_of_the_topology(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    (rollout,) = (r for r in world.catalogue.rollouts("acme", "", "", 9) if not r.state.has_ended)
    for paused in (True, False):
        world.app.pause("acme", rollout.id, paused)
    world.app.quarantine("acme", "demo", 2, "wrong")
    deliver(world, *lifecycle(world))
    recall = Recall("acme", "recall-1", Action.ROLL_BACK, "", world.clock(), (Cause(DATASET),))
    world.recalls.create(recall, RequestKey("", ""))
    search = Search("acme", recall.id, Sought(), ())
    world.recalls.join(search, Held((Cause(FILE),)))
    world.recalls.lift("acme", recall.id, "")
    published = {fact_of(type(event.message)).type for event in world.events()}
    assert published == {fact.type for fact in produced_by("registry")}


def test_it_subscribes_to_what_the_topology_says(world: World) -> None:
    subscribed = {fact_of(s.message).type for s in subscriptions(world.app)}
    assert subscribed == {fact.type for fact in consumed_by("registry")}


def test_tuned_models_name_their_base() -> None:
    assert base_model_of("ft:demo:acme:docs:k3x9") == "demo"
    assert base_model_of("demo") == ""
