"""A version gets no traffic before it has said on Triton what its artifact said."""

from pathlib import Path

import pytest
from registry_builders import World

from millrace_registry import convert, served_parity
from millrace_registry.domain import VersionState
from millrace_runtime.database import Database
from millrace_runtime.parity import ARTIFACT, TRAINER, Probe, Report
from millrace_testkit.clock import FakeClock

ONE, TWO = ("acme.demo", 1), ("acme.demo", 2)
PROBES = [
    Probe("turns", [{"role": "user", "content": "Hello"}], (), "sha256:0", [5, 6, 7], 2),
    Probe("heldout_1", token_ids=[8, 9], prompt_tokens=2),
]


def report(score: float = -1.0) -> Report:
    probes = [
        probe.scored(TRAINER, []).scored(ARTIFACT, [score] * (len(probe.token_ids) - 1))
        for probe in PROBES
    ]
    return Report({}, probes)


@pytest.fixture
def world(database: Database, tmp_path: Path, clock: FakeClock) -> World:
    return World(database, tmp_path, clock)


def test_one_that_says_the_same_serves_and_its_report_tells(world: World) -> None:
    world.finish(1, parity=report())
    world.look(4)
    assert world.shares() == {1: 1.0}
    told = convert.version_to_proto(world.version(1)).measurements.parity
    [stage] = told.stages
    assert (stage.stage, stage.tokens, stage.maximum_difference) == ("serving", 3, 0)
    assert not stage.mismatch
    assert told.probes == 2


def test_one_that_says_something_else_never_gets_traffic(world: World) -> None:
    world.finish(1, parity=report())
    world.look(20)
    world.triton.shifts[TWO] = 2.5
    world.finish(2, parity=report())
    for _ in range(6):
        world.look()
        assert world.shares() == {1: 1.0}
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    assert rollout.state == "REVERSED"
    assert "stage 'serving': log-probabilities of 3 tokens differ by 2.5" in rollout.reason
    told = convert.version_to_proto(world.version(2)).measurements.parity
    assert told.stages[0].mismatch


def test_the_first_version_is_held_back_too(world: World) -> None:
    world.triton.shifts[ONE] = 2.5
    world.finish(1, parity=report())
    world.look(6)
    assert world.shares() == {}
    assert world.rollout_states() == ["REVERSED"]


def test_an_engine_that_gives_no_scores_does_not_pass(world: World) -> None:
    world.triton.unscored.add(ONE)
    world.finish(1, parity=report())
    world.look(12, seconds=2)
    assert world.shares() == {}
    rollout = world.catalogue.rollouts("acme", "demo", "", 1)[0]
    assert rollout.state == "REVERSED"
    assert "its parity cannot be measured" in rollout.reason


def test_what_has_nothing_to_be_compared_with_is_not_asked(world: World) -> None:
    world.triton.shifts[ONE] = 2.5
    world.finish(1)
    world.look(4)
    assert world.shares() == {1: 1.0}


def test_a_report_that_is_gone_from_the_artifact_is_a_mismatch(world: World) -> None:
    world.artifact("demo-1")
    world.finish_again(1, measured={"parity": {"probes": 2}})
    world.look(6)
    assert world.version(1).state != VersionState.SERVING
    assert "cannot be read" in world.catalogue.rollouts("acme", "demo", "", 1)[0].reason


def test_an_engine_of_checkpoints_is_asked_token_by_token(world: World) -> None:
    asked: list[list[int]] = []

    class Engine:
        def score(self, model: str, version: int, token_ids: list[int]) -> list[float]:
            raise AssertionError("it gives none of a prompt")

        def score_last(self, model: str, version: int, token_ids: list[int]) -> float:
            asked.append(list(token_ids))
            return -1.0

    world.finish(1, parity=report())
    version = world.version(1)
    plain = type(version)(**{**version.__dict__, "target": "TARGET_SAFETENSORS"})
    stage = served_parity.check(Engine(), "acme.demo", plain, world.content)  # type: ignore[arg-type]
    assert not stage.mismatch
    assert asked == [[5, 6], [5, 6, 7], [8, 9]]
