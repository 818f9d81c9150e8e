"""Versions that are made for an engine which the endpoint does not have."""

from pathlib import Path

import pytest
from registry_builders import World

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace_registry.app import RegistryApp
from millrace_registry.domain import VersionState
from millrace_registry.engine import HERE, engine_of_target, unserved_reason
from millrace_registry.settings import RegistrySettings
from millrace_runtime.database import Database
from millrace_runtime.errors import FailedPrecondition
from millrace_testkit.clock import FakeClock

ENGINES = {"openvino", "transformers", "onnxruntime", "vllm", "tensorrt"}


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    world = World(database, tmp_path, clock)
    world.finish(1)
    world.look(14)
    return world


def finish(world: World, app: RegistryApp, target: str, step: int) -> None:
    app.artifact_finished(
        "acme",
        compression=f"tenants/acme/compressions/{target}-{step}",
        target=target,
        artifact=world.artifact(f"{target}-{step}"),
        checkpoint={**world.version(1).checkpoint, "step": str(step)},
        measurements={},
        base_model="",
        traceparent="",
        is_by_hand=True,
    )


def app_with(world: World, *engines: str) -> RegistryApp:
    return RegistryApp(
        world.catalogue,
        world.lineage,
        world.content,
        ring=lambda: None,
        ring_controller=lambda: None,
        engines=engines,
        now=world.clock,
    )


@pytest.mark.parametrize(
    "target", ["TARGET_ONNX_INT8", "TARGET_TENSORRT_FP8", "TARGET_COMPRESSED_TENSORS_W4A16"]
)
def test_it_is_registered_and_never_loaded(world: World, target: str) -> None:
    finish(world, world.app, target, 2)
    world.look(14)
    made = world.version(2)
    assert made.state == VersionState.REGISTERED
    assert engine_of_target(target) in made.state_reason
    assert "openvino, transformers" in made.state_reason
    assert world.rollout_states() == ["SETTLED"]
    assert world.triton.ready() == {("acme.demo", 1)}
    with pytest.raises(FailedPrecondition, match="not served here"):
        world.app.hold("acme", "demo", 2)
    world.look(2)
    assert world.triton.ready() == {("acme.demo", 1)}
    assert world.facts().count("version.registered") == 2


def test_a_step_means_the_version_of_it_that_is_served(world: World) -> None:
    step = int(str(world.version(1).checkpoint["step"]))
    finish(world, world.app, "TARGET_ONNX_INT8", step)
    assert world.app.resolve("acme", f"demo:ckpt-step-{step}").number == 1


def test_an_owner_says_which_engines_the_endpoint_has(world: World) -> None:
    finish(world, app_with(world, *HERE, "onnxruntime"), "TARGET_ONNX_INT8", 2)
    assert world.version(2).state_reason == ""
    assert world.rollout_states() == ["SETTLED", "PENDING"]


def test_a_damaged_one_is_quarantined_all_the_same(world: World) -> None:
    content = world.artifact("TARGET_ONNX_INT8-2")
    (world.content.working_path("artifacts/TARGET_ONNX_INT8-2") / "weights.bin").write_text("x")
    world.app.artifact_finished(
        "acme",
        compression="tenants/acme/compressions/damaged",
        target="TARGET_ONNX_INT8",
        artifact=content,
        checkpoint=world.version(1).checkpoint,
        measurements={},
        base_model="",
        traceparent="",
    )
    assert world.version(2).state == VersionState.QUARANTINED
    assert "damaged" in world.version(2).state_reason


@pytest.mark.parametrize("target", list(compressor_pb2.Target.keys()[1:]))
def test_every_target_has_an_engine(target: str) -> None:
    assert engine_of_target(target) in ENGINES
    assert not unserved_reason(target, ENGINES)


def test_what_nobody_knows_is_not_served() -> None:
    assert "TARGET_MADE_UP" in unserved_reason("TARGET_MADE_UP", HERE)


def test_the_setting_is_the_engines_of_this_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RegistrySettings().engines == HERE
    monkeypatch.setenv("MILLRACE_REGISTRY_ENGINES", '["openvino", "onnxruntime"]')
    assert RegistrySettings().engines == ("openvino", "onnxruntime")
