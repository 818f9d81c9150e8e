"""The service over gRPC: a real server in this process, with the service's interceptor."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from registry_builders import World

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as pb
from millrace.registry.v1 import service_pb2_grpc
from millrace_registry.api import RegistryServicer
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
)
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.clock import FakeClock

Stub = service_pb2_grpc.RegistryServiceStub
ACME, DEMO = "tenants/acme", "tenants/acme/models/demo"
VERSION_1 = f"{DEMO}/versions/1"
ANALYSIS = pb.Analysis(
    false_alarm_rate=0.001,
    maximum_latency_increase=0.0,
    maximum_cut_increase=1.0,
    maximum_score_decrease=0.1,
    minimum_pairs=16,
    minimum_timed_answers=50,
)
SERVING = pb.Serving(
    instance_count=2,
    max_batch_size=8,
    queue_policy=pb.QueuePolicy(max_queue_size=4, default_timeout_seconds=1.5),
)
TASK = compressor_pb2.Task(
    file="tenants/acme/files/file-1",
    content={"uri": "file:///data/files/a", "digest": "sha256:" + "a" * 64, "size_bytes": 5},
    metric=compressor_pb2.TASK_METRIC_TOKEN_F1,
    rows=32,
    seed=2**60,
)
_WATCH_LIMIT_SECONDS = 10


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    """On SQLite: what both databases do alike is asserted in test_catalogue and test_control."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield World(database, tmp_path, clock)
    database.close()


@pytest.fixture
def draining() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def stub(world: World, draining: threading.Event) -> Iterator[Stub]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    RegistryServicer(world.app, world.control, draining).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield Stub(channel)
    draining.set()
    channel.close()
    server.stop(None).wait()


def wanted(model: str = "demo", **fields: object) -> pb.Deployment:
    given = {
        "model": model,
        "targets": [compressor_pb2.TARGET_OPENVINO_INT8],
        "strategy": pb.RolloutStrategy(immediate=pb.ImmediateStrategy()),
        **fields,
    }
    return pb.Deployment(**given)


def create(stub: Stub, deployment: pb.Deployment, request_id: str = "") -> pb.Deployment:
    request = pb.CreateDeploymentRequest(parent=ACME, deployment=deployment, request_id=request_id)
    return call(stub.CreateDeployment, request).deployment


def canary(*steps: float, minimum_requests: int = 8) -> pb.RolloutStrategy:
    return pb.RolloutStrategy(
        canary=pb.CanaryStrategy(steps=steps, bake_seconds=1, minimum_requests=minimum_requests)
    )


def test_a_model_and_its_versions_are_shown(stub: Stub, world: World) -> None:
    world.serve(1)
    model = call(stub.GetModel, pb.GetModelRequest(name=DEMO)).model
    assert (model.serving_version, dict(model.aliases)) == (1, {"champion": 1})
    listed = call(stub.ListModels, pb.ListModelsRequest(parent=ACME))
    assert list(listed.models) == [model]
    version = call(stub.GetVersion, pb.GetVersionRequest(name=VERSION_1)).version
    assert version.state == pb.VERSION_STATE_SERVING
    assert version.target == compressor_pb2.TARGET_OPENVINO_INT8
    assert version.artifact.digest.startswith("sha256:")
    assert version.checkpoint.name == "tenants/acme/runs/r/checkpoints/demo-1"
    assert version.checkpoint.step == 1
    assert version.measurements.original_perplexity == 10.0
    page = call(stub.ListVersions, pb.ListVersionsRequest(parent="tenants/acme/models/-"))
    assert list(page.versions) == [version]
    for reference in ("demo@champion", "demo:ckpt-step-1"):
        resolve = pb.ResolveVersionRequest(parent=ACME, reference=reference)
        assert call(stub.ResolveVersion, resolve).version == version
    held = call(stub.HoldVersion, pb.HoldVersionRequest(name=VERSION_1))
    assert held.expire_time.ToDatetime(world.clock().tzinfo) > world.clock()


def test_pages_over_the_wire(stub: Stub, world: World) -> None:
    for number in (1, 2, 3):
        world.finish(number)
    seen, token = [], ""
    for _ in range(3):
        request = pb.ListVersionsRequest(parent=DEMO, page_size=1, page_token=token)
        page = call(stub.ListVersions, request)
        seen += [version.number for version in page.versions]
        token = page.next_page_token
    assert (seen, token) == ([3, 2, 1], "")


def test_an_alias_is_set_and_removed(stub: Stub, world: World) -> None:
    world.finish(1)
    request = pb.SetAliasRequest(name=DEMO, alias="stable", version=1)
    assert dict(call(stub.SetAlias, request).model.aliases) == {"stable": 1}
    removed = pb.SetAliasRequest(name=DEMO, alias="stable")
    assert dict(call(stub.SetAlias, removed).model.aliases) == {}
    with pytest.raises(NotFound):
        call(stub.SetAlias, pb.SetAliasRequest(name=DEMO, alias="stable", version=9))


def test_a_deployment_comes_back_as_it_went_in(stub: Stub) -> None:
    gate = compressor_pb2.GatePolicy(min_top1_agreement=0.9)
    made = create(
        stub,
        wanted(
            tracking=pb.CHECKPOINT_TRACKING_FINAL,
            gate=gate,
            strategy=canary(0.25, 0.5),
            serving=SERVING,
            analysis=ANALYSIS,
        ),
    )
    assert made.analysis == ANALYSIS
    assert made.serving == SERVING
    assert made.tracking == pb.CHECKPOINT_TRACKING_FINAL
    assert made.gate == gate
    assert list(made.strategy.canary.steps) == [0.25, 0.5]
    assert made.etag
    assert call(stub.GetDeployment, pb.GetDeploymentRequest(name=made.name)).deployment == made
    listed = call(stub.ListDeployments, pb.ListDeploymentsRequest(parent=ACME))
    assert list(listed.deployments) == [made]


def test_the_compressor_is_told_by_which_task_artifacts_are_measured(stub: Stub) -> None:
    gate = compressor_pb2.GatePolicy(max_task_score_decrease=0.02, min_task_score=0.5)
    made = create(stub, wanted(task=TASK, gate=gate))
    assert (made.task, made.gate) == (TASK, gate)
    request = pb.MatchDeploymentsRequest(parent=ACME, model="demo", final=False)
    assert list(call(stub.MatchDeployments, request).deployments) == [made]
    made.ClearField("task")
    updated = call(stub.UpdateDeployment, pb.UpdateDeploymentRequest(deployment=made)).deployment
    assert not updated.HasField("task")


def test_a_request_sent_twice_makes_one_deployment(stub: Stub) -> None:
    made = create(stub, wanted(), "r1")
    assert create(stub, wanted(), "r1") == made
    with pytest.raises(AlreadyExists) as other:
        create(stub, wanted("other"), "r1")
    assert other.value.reason == "REQUEST_ID_REUSED"
    with pytest.raises(AlreadyExists) as second:
        create(stub, wanted())
    assert second.value.reason == "DEPLOYMENT_EXISTS"


def test_an_update_with_an_old_etag_is_refused(stub: Stub) -> None:
    made = create(stub, wanted())
    update = pb.UpdateDeploymentRequest(deployment=made)
    update.deployment.strategy.CopyFrom(canary(0.5))
    updated = call(stub.UpdateDeployment, update).deployment
    assert updated.etag != made.etag
    assert updated.strategy.WhichOneof("strategy") == "canary"
    for etag in (made.etag, "made-up"):
        update.deployment.etag = etag
        with pytest.raises(Aborted) as raised:
            call(stub.UpdateDeployment, update)
        assert raised.value.reason == "ETAG_MISMATCH"
    update.deployment.etag = ""
    assert call(stub.UpdateDeployment, update).deployment.etag != updated.etag


@pytest.mark.parametrize(
    ("deployment", "field"),
    [
        (wanted(""), "deployment.model"),
        (wanted(targets=[]), "deployment.targets"),
        (wanted(strategy=canary()), "deployment.strategy.canary.steps"),
        (wanted(strategy=canary(1.5)), "deployment.strategy.canary.steps[0]"),
        (wanted(strategy=canary(0.5, 0.25)), "deployment.strategy.canary.steps"),
        (
            wanted(strategy=canary(0.5, minimum_requests=0)),
            "deployment.strategy.canary.minimum_requests",
        ),
        (
            wanted(analysis=pb.Analysis(false_alarm_rate=0.0)),
            "deployment.analysis.false_alarm_rate",
        ),
        (
            wanted(analysis=pb.Analysis(maximum_cut_increase=1.5)),
            "deployment.analysis.maximum_cut_increase",
        ),
        (
            wanted(task=compressor_pb2.Task(file="f", metric=TASK.metric)),
            "deployment.task.content",
        ),
        (wanted(serving=pb.Serving(instance_count=0)), "deployment.serving.instance_count"),
        (wanted(serving=pb.Serving(max_batch_size=-1)), "deployment.serving.max_batch_size"),
        (
            wanted(serving=pb.Serving(queue_policy=pb.QueuePolicy(default_timeout_seconds=0))),
            "deployment.serving.queue_policy.default_timeout_seconds",
        ),
    ],
)
def test_a_bad_deployment_names_the_field(
    stub: Stub, deployment: pb.Deployment, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        create(stub, deployment)
    assert raised.value.field == field


def test_the_compressor_is_told_who_wants_a_checkpoint(stub: Stub) -> None:
    request = pb.MatchDeploymentsRequest(parent=ACME, model="new", final=False)
    (made,) = call(stub.MatchDeployments, request).deployments
    assert list(made.targets) == [compressor_pb2.TARGET_OPENVINO_INT8]
    assert made.gate.max_perplexity_increase == 0.02
    canary_of_default = made.strategy.canary
    assert list(canary_of_default.steps) == [0.25]
    assert canary_of_default.minimum_requests == 8


def test_a_rollout_is_shown_promoted_and_reversed(stub: Stub, world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    request = pb.ListRolloutsRequest(parent="tenants/-", model="demo")
    newest = call(stub.ListRollouts, request).rollouts[0]
    assert newest.state == pb.ROLLOUT_STATE_CANARY
    assert (newest.from_version, newest.to_version, newest.traffic_share) == (1, 2, 0.25)
    assert not newest.HasField("finish_time")
    promoted = call(stub.PromoteRollout, pb.PromoteRolloutRequest(name=newest.name)).rollout
    assert promoted.state == pb.ROLLOUT_STATE_SETTLED
    assert promoted.HasField("finish_time")
    with pytest.raises(FailedPrecondition) as raised:
        call(stub.ReverseRollout, pb.ReverseRolloutRequest(name=newest.name))
    assert raised.value.reason == "ROLLOUT_STATE"


def test_answers_that_gateways_report_judge_a_canary(stub: Stub, world: World) -> None:
    world.serve(1)
    world.finish(2)
    world.look(3)
    seen = pb.VersionAnswers(tenant="acme", model="demo", version=2, requests=20, failures=15)
    report = pb.ReportAnswersRequest(gateway="gateway-1", answers=[seen])
    for _ in range(2):  # a report that comes twice changes nothing
        call(stub.ReportAnswers, report)
    world.look(4)
    newest = call(stub.ListRollouts, pb.ListRolloutsRequest(parent=ACME)).rollouts[0]
    assert newest.state == pb.ROLLOUT_STATE_REVERSED
    assert newest.failures == 15
    assert newest.requests in range(20, 30)
    assert "15 of 2" in newest.reason


def test_quarantine(stub: Stub, world: World) -> None:
    world.serve(1)
    request = pb.QuarantineVersionRequest(name=VERSION_1, reason="it is wrong")
    version = call(stub.QuarantineVersion, request).version
    assert version.state == pb.VERSION_STATE_QUARANTINED
    assert version.state_reason == "it is wrong"
    with pytest.raises(NotFound, match="version in service"):
        call(stub.ResolveVersion, pb.ResolveVersionRequest(parent=ACME, reference="demo"))


def test_lineage_over_the_wire(stub: Stub, world: World) -> None:
    world.finish(1)
    found = call(stub.GetLineage, pb.GetLineageRequest(parent=ACME, name=VERSION_1))
    assert {node.kind for node in found.nodes} == {"compression", "version", "deployment"}
    assert len(found.edges) == 3
    digest = world.version(1).artifact.digest
    by_digest = call(stub.GetLineage, pb.GetLineageRequest(parent=ACME, name=digest))
    assert len(by_digest.edges) == 3


def watch(stub: Stub) -> Iterator[pb.WatchRoutesResponse]:
    return iter(stub.WatchRoutes(pb.WatchRoutesRequest(), timeout=_WATCH_LIMIT_SECONDS))


def test_a_watch_shows_the_table_then_each_change(stub: Stub, world: World) -> None:
    routes = watch(stub)
    empty = next(routes)
    assert list(empty.routes) == []
    world.serve(1)
    table = next(table for table in routes if table.routes and table.routes[0].targets)
    assert table.revision > empty.revision
    (route,) = table.routes
    assert (route.tenant, route.model, route.triton_model) == ("acme", "demo", "acme.demo")
    (target,) = route.targets
    assert (target.version, target.share) == (1, 1.0)
    assert list(target.endpoints) == ["triton:8001"]
    assert (target.context_length, target.eos_token) == (128, "<|im_end|>")
    assert target.chat_template == "{{ messages }}"


def test_a_deleted_model_leaves_the_watched_table(stub: Stub, world: World) -> None:
    world.serve(1)
    routes = watch(stub)
    assert [route.model for route in next(routes).routes] == ["demo"]
    call(stub.DeleteModel, pb.DeleteModelRequest(name=DEMO))
    world.look()
    assert list(next(routes).routes) == []
    with pytest.raises(NotFound):
        call(stub.GetModel, pb.GetModelRequest(name=DEMO))


def test_draining_ends_a_watch(stub: Stub, draining: threading.Event) -> None:
    routes = watch(stub)
    next(routes)
    draining.set()
    assert list(routes) == []


def test_what_is_not_there(stub: Stub) -> None:
    attempts = (
        (stub.GetModel, pb.GetModelRequest(name=DEMO)),
        (stub.DeleteModel, pb.DeleteModelRequest(name=DEMO)),
        (stub.GetVersion, pb.GetVersionRequest(name=VERSION_1)),
        (stub.QuarantineVersion, pb.QuarantineVersionRequest(name=VERSION_1, reason="x")),
        (stub.GetDeployment, pb.GetDeploymentRequest(name=f"{ACME}/deployments/d")),
        (stub.GetRollout, pb.GetRolloutRequest(name=f"{ACME}/rollouts/r")),
        (stub.PromoteRollout, pb.PromoteRolloutRequest(name=f"{ACME}/rollouts/r")),
        (stub.ReverseRollout, pb.ReverseRolloutRequest(name=f"{ACME}/rollouts/r")),
        (stub.GetLineage, pb.GetLineageRequest(parent=ACME, name=VERSION_1)),
    )
    for method, request in attempts:
        with pytest.raises(MillraceError) as raised:
            call(method, request)
        assert isinstance(raised.value, NotFound), request


def test_only_lists_may_ask_for_every_tenant(stub: Stub) -> None:
    attempts = (
        (stub.GetModel, pb.GetModelRequest(name="tenants/-/models/demo")),
        (stub.CreateDeployment, pb.CreateDeploymentRequest(parent="tenants/-")),
        (stub.ResolveVersion, pb.ResolveVersionRequest(parent="tenants/-", reference="demo")),
        (stub.GetLineage, pb.GetLineageRequest(parent="tenants/-", name="x")),
    )
    for method, request in attempts:
        with pytest.raises(InvalidArgument):
            call(method, request)
    assert list(call(stub.ListRollouts, pb.ListRolloutsRequest(parent="tenants/-")).rollouts) == []
