"""The reconciler: what the compressor has and no fact told of."""

from pathlib import Path
from typing import Any

import pytest
from registry_builders import World

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_registry.upstream import ArtifactReconciler
from millrace_runtime.database import Database
from millrace_testkit.clock import FakeClock


class PlayedCompressor:
    """Lists its compressions, newest first, two a page."""

    def __init__(self) -> None:
        self.compressions: list[compressor_pb2.Compression] = []
        self.pages = 0

    def ListCompressions(self, request: Any, **_: Any) -> Any:
        self.pages += 1
        start = int(request.page_token or 0)
        newest = list(reversed(self.compressions))
        token = str(start + 2) if start + 2 < len(newest) else ""
        return compressor_pb2.ListCompressionsResponse(
            compressions=newest[start : start + 2], next_page_token=token
        )


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


def compression(
    world: World, number: int, *, passed: bool = True, tenant: str = "acme"
) -> compressor_pb2.Compression:
    artifact = world.artifact(f"demo-{number}")
    return compressor_pb2.Compression(
        name=f"tenants/{tenant}/compressions/demo-{number}",
        state=lifecycle_pb2.WORK_STATE_SUCCEEDED,
        target=compressor_pb2.TARGET_OPENVINO_INT8,
        checkpoint=compressor_pb2.CheckpointReference(
            name=f"tenants/{tenant}/runs/r/checkpoints/demo-{number}", model="demo"
        ),
        artifact=lifecycle_pb2.Content(
            uri=artifact.uri, digest=artifact.digest, size_bytes=artifact.size_bytes
        ),
        verdict=compressor_pb2.Verdict(passed=passed),
    )


def test_what_passed_and_has_no_version_gets_one_in_its_order(world: World) -> None:
    compressor = PlayedCompressor()
    reconcile = ArtifactReconciler(compressor, world.catalogue, world.app)
    compressor.compressions = [compression(world, number) for number in (1, 2)]
    for _ in range(2):
        reconcile()
    versions, _ = world.app.versions("acme", "demo", 10, "")
    assert [version.compression[-6:] for version in versions] == ["demo-2", "demo-1"]
    assert world.facts() == ["version.registered"] * 2


def test_a_fact_and_the_reconciler_make_one_version(world: World) -> None:
    compressor = PlayedCompressor()
    compressor.compressions = [compression(world, 1)]
    world.finish_again(1)
    ArtifactReconciler(compressor, world.catalogue, world.app)()
    world.finish_again(1)
    assert world.facts() == ["version.registered"]


def test_what_failed_its_gate_or_has_not_ended_is_left_alone(world: World) -> None:
    compressor = PlayedCompressor()
    running = compression(world, 2)
    running.state = lifecycle_pb2.WORK_STATE_RUNNING
    compressor.compressions = [compression(world, 1, passed=False), running]
    ArtifactReconciler(compressor, world.catalogue, world.app)()
    assert world.app.versions("acme", "demo", 10, "") == ([], "")


def test_it_reads_all_once_and_then_no_further_than_a_page_without_news(world: World) -> None:
    compressor = PlayedCompressor()
    compressor.compressions = [compression(world, number) for number in range(1, 7)]
    world.finish_again(5)
    world.finish_again(6)
    reconcile = ArtifactReconciler(compressor, world.catalogue, world.app)
    reconcile()
    assert len(world.app.versions("acme", "demo", 10, "")[0]) == 6
    compressor.pages = 0
    reconcile()
    assert compressor.pages == 1


def test_the_version_stays_in_its_compressions_trace(world: World) -> None:
    compressor = PlayedCompressor()
    found = compression(world, 1)
    found.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    compressor.compressions = [found]
    ArtifactReconciler(compressor, world.catalogue, world.app)()
    (version,), _ = world.app.versions("acme", "demo", 10, "")
    assert version.traceparent == found.traceparent
