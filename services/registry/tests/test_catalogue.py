"""Models, versions, deployments and lineage, on SQLite and PostgreSQL."""

from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from registry_builders import World

from millrace.topology import consumed_by
from millrace_registry.domain import (
    Deployment,
    LineageEdge,
    LineageNode,
    RequestKey,
    Tracking,
    VersionState,
)
from millrace_registry.events import subscriptions
from millrace_registry.schema import METADATA
from millrace_runtime.database import Database
from millrace_runtime.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from millrace_testkit.clock import FakeClock


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


def deployment(world: World, model: str = "demo", **changes: object) -> Deployment:
    now = world.clock()
    return replace(Deployment("acme", "", model, now, now), **changes)


def test_the_migrations_make_the_schema(world: World) -> None:
    with world.database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_it_subscribes_to_what_the_topology_says(world: World) -> None:
    subscribed = {s.message.DESCRIPTOR.full_name for s in subscriptions(world.app)}
    assert subscribed == {fact.type for fact in consumed_by("registry")}


def test_an_artifact_told_of_twice_is_one_version(world: World) -> None:
    world.finish(1)
    world.finish(1)
    world.finish(2)
    versions, token = world.app.versions("acme", "demo", 10, "")
    assert [version.number for version in versions] == [2, 1]
    assert token == ""
    assert world.facts() == ["version.registered"] * 2
    assert world.rollout_states() == ["PENDING"] * 2


def test_a_damaged_artifact_is_registered_as_quarantined(world: World) -> None:
    world.artifact("demo-1")
    (world.content.working_path("artifacts/demo-1") / "weights.bin").write_text("x")
    damaged = world.content.working_path("artifacts/demo-1")
    with pytest.MonkeyPatch.context() as patch:
        digest = "sha256:" + "0" * 64
        broken = replace(world.artifact("demo-2"), uri=damaged.as_uri(), digest=digest)
        patch.setattr(world, "artifact", lambda name: broken)
        world.finish(1)
    assert world.version(1).state == VersionState.QUARANTINED
    assert world.facts() == ["version.registered", "version.quarantined"]
    assert world.rollout_states() == []


def test_pages_of_versions(world: World) -> None:
    for number in range(1, 6):
        world.finish(number)
        world.clock.advance(1)
    first, token = world.app.versions("acme", "demo", 2, "")
    second, token = world.app.versions("acme", "demo", 2, token)
    third, end = world.app.versions("acme", "demo", 2, token)
    assert [version.number for version in first + second + third] == [5, 4, 3, 2, 1]
    assert end == ""


def test_another_tenant_sees_nothing(world: World) -> None:
    world.finish(1)
    with pytest.raises(NotFound):
        world.app.model("other", "demo")
    with pytest.raises(NotFound):
        world.app.version("other", "demo", 1)
    assert world.app.versions("other", "-", 10, "") == ([], "")
    with pytest.raises(NotFound):
        world.app.lineage("other", "tenants/acme/models/demo/versions/1")


def test_references_are_resolved(world: World) -> None:
    world.finish(1)
    with pytest.raises(NotFound, match="no version in service"):
        world.app.resolve("acme", "demo")
    world.look(4)
    world.app.set_alias("acme", "demo", "stable", 1)
    for reference in ("demo", "demo@1", "demo@champion", "demo@stable"):
        assert world.app.resolve("acme", reference).number == 1
    with pytest.raises(NotFound, match="models: demo"):
        world.app.resolve("acme", "nobody")
    with pytest.raises(NotFound):
        world.app.resolve("acme", "demo@7")


def test_champion_follows_the_rollouts_alone(world: World) -> None:
    world.finish(1)
    with pytest.raises(InvalidArgument, match="champion"):
        world.app.set_alias("acme", "demo", "champion", 1)


def test_a_model_without_a_deployment_gets_the_default(world: World) -> None:
    (made,) = world.app.match_deployments("acme", "demo", final=False)
    assert made.targets == ("TARGET_OPENVINO_INT8",)
    assert world.app.match_deployments("acme", "demo", final=True) == [made]


def test_a_deployment_may_want_final_checkpoints_only(world: World) -> None:
    wanted = deployment(world, tracking=Tracking.FINAL)
    world.app.create_deployment(wanted, RequestKey("", ""))
    assert world.app.match_deployments("acme", "demo", final=False) == []
    assert len(world.app.match_deployments("acme", "demo", final=True)) == 1


def test_one_model_has_one_deployment(world: World) -> None:
    request = RequestKey("request-1", "digest-1")
    made = world.app.create_deployment(deployment(world), request)
    assert world.app.create_deployment(deployment(world), request) == made
    with pytest.raises(AlreadyExists):
        world.app.create_deployment(deployment(world), RequestKey("", ""))
    with pytest.raises(AlreadyExists):
        world.app.create_deployment(deployment(world), RequestKey("request-1", "digest-2"))


def test_an_update_for_an_old_state_is_refused(world: World) -> None:
    made = world.app.create_deployment(deployment(world), RequestKey("", ""))
    changed = world.app.update_deployment(replace(made, tracking=Tracking.FINAL), made.revision)
    assert (changed.tracking, changed.revision) == (Tracking.FINAL, made.revision + 1)
    with pytest.raises(Aborted):
        world.app.update_deployment(made, made.revision)
    with pytest.raises(InvalidArgument):
        world.app.update_deployment(replace(made, model="other"), None)


def test_nothing_is_registered_for_a_deleted_model(world: World) -> None:
    world.finish(1)
    world.app.delete_model("acme", "demo")
    world.finish(2)
    assert world.catalogue.version("acme", "demo", 2) is None
    assert world.app.match_deployments("acme", "demo", final=True) == []
    with pytest.raises(NotFound):
        world.app.delete_model("acme", "demo")


def test_lineage_goes_both_ways(world: World) -> None:
    names = {kind: f"tenants/acme/{kind}s/1" for kind in ("dataset", "run", "checkpoint", "file")}
    nodes = [LineageNode(name, kind) for kind, name in names.items()]
    nodes[0] = LineageNode(names["dataset"], "dataset", "sha256:" + "d" * 64)
    chain = [
        LineageEdge(names["dataset"], names["run"]),
        LineageEdge(names["run"], names["checkpoint"]),
    ]
    for _ in range(2):  # a fact may come twice
        world.app.learn(nodes, chain)
    for start in (names["dataset"], names["checkpoint"], "sha256:" + "d" * 64):
        found, edges = world.app.lineage("acme", start)
        assert {node.kind for node in found} == {"dataset", "run", "checkpoint"}
        assert sorted(edges, key=lambda edge: edge.cause) == chain
