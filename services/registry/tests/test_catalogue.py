"""Models, versions, deployments and lineage, on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from registry_builders import World

from millrace_registry.domain import (
    Deployment,
    LineageEdge,
    LineageNode,
    RequestKey,
    RolloutState,
    Tracking,
    VersionState,
)
from millrace_registry.schema import METADATA
from millrace_registry.strategies import Canary
from millrace_runtime.database import Database
from millrace_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from millrace_runtime.paging import decode_token, encode_token
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


def test_an_artifact_told_of_twice_is_one_version(world: World) -> None:
    world.finish(1)
    world.finish(1)
    world.finish(2)
    versions, token = world.app.versions("acme", "demo", 10, "")
    assert [version.number for version in versions] == [2, 1]
    assert token == ""
    assert world.facts() == ["version.registered"] * 2
    assert world.rollout_states() == ["PENDING"] * 2


def test_an_older_checkpoint_that_arrives_later_does_not_take_over(world: World) -> None:
    world.finish(2)
    world.finish(1)
    assert world.rollout_states() == ["PENDING", "SUPERSEDED"]
    world.look(4)
    world.finish(0)
    world.look(4)
    assert world.rollout_states() == ["SETTLED", "SUPERSEDED", "SUPERSEDED"]
    assert world.app.resolve("acme", "demo").checkpoint_name.endswith("/demo-2")


def test_an_older_checkpoint_serves_where_the_newer_one_may_not(world: World) -> None:
    world.serve(2)
    world.app.quarantine("acme", "demo", 1, "it is wrong")
    world.finish(1)
    world.look(20)
    assert world.app.resolve("acme", "demo").checkpoint_name.endswith("/demo-1")


def test_an_older_checkpoint_that_a_person_asked_for_is_rolled_out(world: World) -> None:
    world.serve(2)
    world.finish(1, is_by_hand=True)
    assert world.rollout_states() == ["SETTLED", "PENDING"]


def test_a_damaged_artifact_is_registered_as_quarantined(world: World) -> None:
    content = world.artifact("demo-1")
    (world.content.directory(content.uri, content.digest) / "weights.bin").write_text("x")
    world.finish_again(1)
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
    digest = "sha256:" + "d" * 64
    for start in (names["dataset"], names["checkpoint"], digest, digest[:23]):
        found, edges = world.app.lineage("acme", start)
        assert {node.kind for node in found} == {"dataset", "run", "checkpoint"}
        assert sorted(edges, key=lambda edge: edge.cause) == chain
    for nothing in ("sha256:" + "e" * 16, "sha256:%"):
        with pytest.raises(NotFound):
            world.app.lineage("acme", nothing)


def test_registrations_that_race_make_one_version_each(world: World) -> None:
    for number in (1, 2, 3):
        world.artifact(f"demo-{number}")
    barrier = threading.Barrier(6)

    def finish(number: int) -> None:
        barrier.wait()
        world.finish_again(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(finish, [1, 1, 2, 2, 3, 3]))
    versions, _ = world.app.versions("acme", "demo", 10, "")
    assert sorted(version.number for version in versions) == [1, 2, 3]
    assert len({version.compression for version in versions}) == 3
    assert world.facts() == ["version.registered"] * 3
    assert len(world.rollout_states()) == 3


def test_a_failed_transaction_leaves_neither_version_nor_rollout_nor_lineage(
    world: World,
) -> None:
    """The fact is written in the transaction of its state: what undoes one undoes the other."""

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    recorded, world.catalogue._record = world.catalogue._record, refuse
    with pytest.raises(OSError, match="no space"):
        world.finish(1)
    assert world.app.versions("acme", "demo", 10, "") == ([], "")
    assert world.rollout_states() == []
    with pytest.raises(NotFound):
        world.app.lineage("acme", "tenants/acme/models/demo/versions/1")
    world.catalogue._record = recorded
    world.finish(1)
    assert world.version(1).number == 1


def test_a_version_has_its_lineage_from_the_start(world: World) -> None:
    world.finish(1)
    (deployment,), _ = world.app.deployments("acme", 10, "")
    nodes, edges = world.app.lineage("acme", "tenants/acme/models/demo/versions/1")
    assert {node.kind for node in nodes} == {"compression", "version", "deployment"}
    assert [(edge.cause, edge.effect) for edge in edges] == [
        ("tenants/acme/compressions/demo-1", "tenants/acme/models/demo/versions/1"),
        ("tenants/acme/models/demo/versions/1", deployment.name),
        ("tenants/acme/runs/r/checkpoints/demo-1", "tenants/acme/compressions/demo-1"),
    ]


def test_pages_of_versions_go_on_after_the_one_that_a_token_names(world: World) -> None:
    """The gateway makes such tokens itself, from the last item that it showed."""
    for model in ("demo", "other"):
        for number in (1, 2):
            world.finish(number, model)
            world.clock.advance(1)
    found, token = world.app.versions("acme", "-", 2, encode_token("other@1"))
    assert [(version.model, version.number) for version in found] == [("demo", 2), ("demo", 1)]
    assert token == ""
    _, token = world.app.versions("acme", "-", 3, "")
    assert decode_token(token) == "demo@2"


def test_pages_of_every_tenants_versions(world: World) -> None:
    for tenant in ("acme", "globex"):  # at the same moment, under the same id
        for number in (1, 2):
            world.finish(number, tenant=tenant)
    seen, token = [], ""
    while True:
        (version,), token = world.app.versions("-", "demo", 1, token)
        seen.append((version.tenant, version.number))
        if not token:
            break
    assert seen == [("globex", 2), ("globex", 1), ("acme", 2), ("acme", 1)]


@pytest.mark.parametrize("reference", ["demo", "demo@9", "demo@x", "@", "globex/demo@1", "1 2 3"])
def test_a_token_of_another_list_is_refused(world: World, reference: str) -> None:
    world.finish(1)
    world.finish(1, tenant="globex")
    with pytest.raises(InvalidArgument, match="page_token"):
        world.app.versions("acme", "-", 2, encode_token(reference))


def test_steps_must_rise(world: World) -> None:
    for steps in ((0.5, 0.25), (0.25, 0.25)):
        with pytest.raises(InvalidArgument, match="larger than the one before"):
            wanted = deployment(world, strategy=Canary(steps=steps))
            world.app.create_deployment(wanted, RequestKey("", ""))


def test_what_is_known_of_a_deleted_models_artifacts_is_not_read_again(world: World) -> None:
    world.finish(1)
    world.app.delete_model("acme", "demo")
    content = world.artifact("demo-2")
    damaged = world.content.directory(content.uri, content.digest) / "weights.bin"
    damaged.write_text("x")
    world.finish_again(2)
    assert world.app.versions("acme", "demo", 10, "")[0][0].number == 1


def test_a_deletion_ends_the_rollouts_and_says_so(world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.finish(3)
    world.look(3)
    world.app.delete_model("acme", "demo")
    assert world.rollout_states() == ["SETTLED", "SUPERSEDED", "REVERSED"]
    assert world.version(1).state == VersionState.RETIRED
    assert "rollout.reversed" in world.facts()


def test_what_has_ended_can_be_neither_promoted_nor_reversed(world: World) -> None:
    world.finish(1)
    (rollout,), _ = world.app.rollouts("acme", "demo", 10, "")
    with pytest.raises(FailedPrecondition, match="PENDING"):
        world.app.promote("acme", rollout.id)
    world.look(1)
    with pytest.raises(FailedPrecondition, match="LOADING"):
        world.app.promote("acme", rollout.id)
    world.look(3)
    with pytest.raises(FailedPrecondition, match="SETTLED"):
        world.app.reverse("acme", rollout.id, "")
    assert world.app.promote("acme", rollout.id).state == RolloutState.SETTLED
    with pytest.raises(NotFound):
        world.app.promote("other", rollout.id)


def test_a_quarantined_version_is_so_for_good(world: World) -> None:
    world.serve(1)
    world.serve(2)
    world.app.quarantine("acme", "demo", 2, "bad")
    world.app.quarantine("acme", "demo", 2, "worse")
    assert world.version(2).state_reason == "bad"
    assert world.facts().count("version.quarantined") == 1
    assert world.app.resolve("acme", "demo").number == 1
    world.look(20)
    assert world.version(2).state == VersionState.QUARANTINED
