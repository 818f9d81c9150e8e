"""What follows from a finished checkpoint, with fakes for the neighbours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from compressor_builders import GATE, TIME, checkpoint, order

from millrace.compressor.v1 import service_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.topology import consumed_by
from millrace_compressor import convert
from millrace_compressor.app import CompressorApp
from millrace_compressor.domain import (
    Checkpoint,
    Compression,
    GatePolicy,
    Measurements,
    Order,
    Target,
)
from millrace_compressor.events import subscriptions
from millrace_compressor.upstream import RegistryDeployments
from millrace_runtime.errors import NotFound, Unavailable


@dataclass
class Wanted:
    deployment: str
    targets: Sequence[Target]
    gate: GatePolicy
    recipe: Mapping[str, Any]
    task: Mapping[str, Any]


class FakeRegistry:
    def __init__(self) -> None:
        self.down = False
        self.targets: Sequence[Target] = (Target.OPENVINO_INT8, Target.OPENVINO_FP32)
        self.recipe: Mapping[str, Any] = {}
        self.task: Mapping[str, Any] = {}

    def match(self, tenant: str, found: Checkpoint) -> Sequence[Wanted]:
        if self.down:
            raise Unavailable("no registry", reason="UPSTREAM_ERROR")
        wanted = f"tenants/{tenant}/deployments/d"
        return [Wanted(wanted, self.targets, GATE, self.recipe, self.task)]


class FakeCheckpoints:
    def __init__(self) -> None:
        self.finished: list[tuple[str, Checkpoint, datetime]] = []

    def all(self) -> Iterable[tuple[str, Checkpoint, datetime]]:
        return reversed(self.finished)


class FakeCompressions:
    """Remembers what was ordered."""

    def __init__(self) -> None:
        self.considered: dict[str, Sequence[Order]] = {}
        self.rows: list[Compression] = []

    def is_considered(self, checkpoint_name: str) -> bool:
        return checkpoint_name in self.considered

    def consider(self, checkpoint_name: str, orders: Sequence[Order]) -> None:
        self.considered[checkpoint_name] = orders

    def add(self, order: Order) -> Compression:
        return Compression("compression-1", order, "", TIME)

    def get(self, tenant: str, id: str) -> Compression | None:
        return next((row for row in self.rows if row.id == id), None)

    def page(self, tenant: str, model: str, before_id: str, count: int) -> list[Compression]:
        return [row for row in self.rows if row.order.checkpoint.model == model][:count]

    def cancel(self, tenant: str, id: str) -> Compression | None:
        return None

    def count_by_state(self) -> dict[str, int]:
        return {}


class World:
    def __init__(self) -> None:
        self.compressions = FakeCompressions()
        self.registry = FakeRegistry()
        self.checkpoints = FakeCheckpoints()
        self.rings = 0
        self.app = CompressorApp(
            self.compressions, self.registry, self.checkpoints, ring_workers=self._ring
        )

    def _ring(self) -> None:
        self.rings += 1


def test_a_checkpoint_is_ordered_for_every_target_of_its_deployments() -> None:
    world = World()
    world.app.checkpoint_finished("acme", checkpoint(), TIME)
    orders = world.compressions.considered[checkpoint().name]
    assert [order.target for order in orders] == [Target.OPENVINO_INT8, Target.OPENVINO_FP32]
    assert {order.requested_time for order in orders} == {TIME}
    assert world.rings == 1


def test_a_deployments_task_travels_from_the_registry_to_every_order_and_into_facts() -> None:
    task = service_pb2.Task(
        file="tenants/acme/files/file-1",
        content={"uri": "file:///f", "digest": "sha256:" + "a" * 64, "size_bytes": 9},
        metric=service_pb2.TASK_METRIC_CONTAINS,
        seed=2**60,
    )
    wanted = registry_pb2.Deployment(
        name="tenants/acme/deployments/d",
        targets=[service_pb2.TARGET_OPENVINO_INT8],
        gate=service_pb2.GatePolicy(min_task_score=0.5),
        task=task,
    )
    response = registry_pb2.MatchDeploymentsResponse(deployments=[wanted])
    stub: Any = SimpleNamespace(MatchDeployments=lambda request: response)
    (found,) = RegistryDeployments(stub).match("acme", checkpoint())
    assert found.gate.min_task_score == 0.5
    world = World()
    world.registry.task = found.task
    world.app.checkpoint_finished("acme", checkpoint(), TIME)
    orders = world.compressions.considered[checkpoint().name]
    shown = [convert.compression_to_proto(Compression("c", o, "", TIME)).task for o in orders]
    assert shown == [task, task]
    request = service_pb2.CreateCompressionRequest(parent="tenants/acme", target=1, task=task)
    assert convert.order_from_proto(request).task == found.task
    assert not convert.compression_to_proto(Compression("c", order(), "", TIME)).HasField("task")


def test_the_same_fact_again_asks_nobody() -> None:
    world = World()
    world.app.checkpoint_finished("acme", checkpoint(), TIME)
    world.registry.down = True
    world.app.checkpoint_finished("acme", checkpoint(), TIME)
    assert world.rings == 1


def test_nothing_is_recorded_while_the_registry_is_away() -> None:
    world = World()
    world.registry.down = True
    with pytest.raises(Unavailable):
        world.app.checkpoint_finished("acme", checkpoint(), TIME)
    assert world.compressions.considered == {}


def test_the_reconciler_considers_what_no_fact_told_oldest_first() -> None:
    world = World()
    world.checkpoints.finished = [("acme", checkpoint(step), TIME) for step in (1, 2, 3)]
    world.app.checkpoint_finished("acme", checkpoint(2), TIME)
    world.app.reconcile()
    assert list(world.compressions.considered) == [checkpoint(s).name for s in (2, 1, 3)]


def test_what_is_not_there_is_not_found() -> None:
    world = World()
    with pytest.raises(NotFound):
        world.app.get("acme", "compression-none")
    with pytest.raises(NotFound):
        world.app.cancel("acme", "compression-none")


def test_a_report_is_of_its_like_that_were_measured() -> None:
    world = World()
    world.compressions.rows = [
        Compression(id, order(step), "", TIME, measurements=Measurements() if measured else None)
        for id, step, measured in (("d", 2, True), ("c", 1, True), ("b", 1, False), ("a", 1, True))
    ]

    def reported(id: str, *, whole_model: bool) -> list[str]:
        return [each.id for each in world.app.report("acme", id, whole_model=whole_model)]

    assert reported("a", whole_model=False) == ["a", "c"]
    assert reported("a", whole_model=True) == ["a", "d", "c"]
    assert reported("b", whole_model=False) == ["b", "c", "a"], "asked for, measured or not"
    with pytest.raises(NotFound):
        world.app.report("acme", "compression-none", whole_model=False)


def test_it_subscribes_to_what_the_topology_says() -> None:
    subscribed = {s.message.DESCRIPTOR.full_name for s in subscriptions(World().app)}
    assert subscribed == {fact.type for fact in consumed_by("compressor")}
