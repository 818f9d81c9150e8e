"""Where the time goes between a checkpoint and its traffic."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from registry_builders import World

from millrace_registry.domain import Content, LineageNode, RequestKey, Rollout, Version
from millrace_registry.stages import STAGES, stage_seconds
from millrace_runtime.database import Database
from millrace_testkit.clock import FakeClock

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def version(**times: datetime) -> Version:
    content = Content("file:///a", "sha256:0", 1)
    made = Version("acme", "demo", 2, "", content, {}, {}, "", after(31), "")
    return Version(**{**vars(made), **times})


def rollout(**times: datetime) -> Rollout:
    return Rollout("acme", "r", "d", "demo", 2, after(31), after(31), "", **times)  # type: ignore[arg-type]


def test_the_stages_add_up_to_the_whole() -> None:
    found = stage_seconds(
        rollout(load_time=after(33), ready_time=after(40)),
        version(compress_start_time=after(10), compress_finish_time=after(30)),
        BEGAN,
        after(60),
    )
    assert [found[stage] for stage in STAGES] == [10, 20, 1, 2, 7, 20]
    assert found["total"] == 60


def test_what_is_not_known_is_left_out() -> None:
    found = stage_seconds(rollout(load_time=after(33)), version(), None, after(60))
    assert found == {"queue": 2, "load": 27, "judge": 0}


def test_clocks_that_are_apart_make_no_negative_time() -> None:
    found = stage_seconds(rollout(), version(compress_finish_time=after(35)), BEGAN, after(60))
    assert found["register"] == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_rollout_that_settles_is_counted(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    world = World(database, tmp_path, clock)
    name = "tenants/acme/runs/r/checkpoints/demo-1"
    world.lineage.add([LineageNode(name, "checkpoint")], [], {name: clock()})
    before = counted("millrace_checkpoint_to_settled_seconds_count")
    loads = counted("millrace_checkpoint_stage_seconds_count", stage="load")
    world.serve(1)
    assert counted("millrace_checkpoint_to_settled_seconds_count") == before + 1
    assert counted("millrace_checkpoint_stage_seconds_count", stage="load") == loads + 1


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_version_that_serves_again_is_not_counted_again(
    database: Database, tmp_path: Path, clock: FakeClock
) -> None:
    world = World(database, tmp_path, clock)
    for number in (1, 2):
        name = f"tenants/acme/runs/r/checkpoints/demo-{number}"
        world.lineage.add([LineageNode(name, "checkpoint")], [], {name: clock()})
        world.finish(number)
        world.look(40)
    before = counted("millrace_checkpoint_to_settled_seconds_count")
    world.app.create_rollout("acme", "demo", 1, RequestKey("", ""), "")
    world.look(40)
    assert world.app.model("acme", "demo").serving_version == 1
    assert counted("millrace_checkpoint_to_settled_seconds_count") == before
