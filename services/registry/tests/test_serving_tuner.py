"""What follows from a search: the winner is written, once, and to nothing that changed."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from registry_builders import World

from millrace_registry.domain import Deployment, QueuePolicy, Serving
from millrace_registry.repository import ModelRepository
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.order import ORDER
from millrace_registry.tuning.service import Endpoint, ServingTuner, Wish
from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition, ResourceExhausted
from millrace_testkit.clock import FakeClock

WISH = Wish(Target(first_token_seconds=0.5, token_seconds=0.1))
BEST = Serving(instance_count=2, max_batch_size=32, threads=1, cache_gibibytes=1)


class PlayedContent:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shape = {"vocab_size": 500, "max_position_embeddings": 128}
        (folder / "config.json").write_text(json.dumps(shape))
        (folder / "tokenizer_config.json").write_text("{}")

    def directory(self, uri: str, digest: str) -> Path:
        return self._folder


class PlayedJob:
    """Says that ``BEST`` is better, or is not; ``meanwhile`` happens before."""

    def __init__(self) -> None:
        self.is_better = True
        self.meanwhile: Callable[[], object] = lambda: None
        self.orders: list[Any] = []

    def run(self, order: Any, *_: object) -> Iterator[dict[str, Any]]:
        self.orders.append(ORDER.validate_json(ORDER.dump_json(order)))
        for number, serving in enumerate((order.present, BEST)):
            yield {"kind": "trial", "number": number, "serving": asdict(serving)}
        self.meanwhile()
        winner = int(self.is_better)
        result = {"is_better": self.is_better, "reason": "why", "noise": 0.05, "score": 9.0}
        yield {"kind": "result", "winner": winner, **result}


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock) -> Iterator[World]:
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    made = World(database, tmp_path, clock)
    made.serve(1)
    yield made
    database.close()


@pytest.fixture
def job() -> PlayedJob:
    return PlayedJob()


@pytest.fixture
def tuner(world: World, job: PlayedJob, tmp_path: Path) -> ServingTuner:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    endpoint = Endpoint("127.0.0.1:1", None, tmp_path / "triton", EngineSettings())
    content: Any = PlayedContent(artifact)
    return ServingTuner(endpoint, world.app, content, threading.Event(), job.run)


def deployment(world: World) -> Deployment:
    return world.app.deployments("acme", 10, "")[0][0]


def tuned(tuner: ServingTuner, world: World, wish: Wish = WISH) -> dict[str, Any]:
    *_, result = tuner.tune("acme", deployment(world).id, wish, threading.Event())
    return dict(result)


def test_the_winner_is_written(tuner: ServingTuner, world: World, job: PlayedJob) -> None:
    result = tuned(tuner, world)
    assert (result["is_written"], result["deployment"].serving) == (True, BEST)
    assert deployment(world).serving == BEST
    order = job.orders[0]
    assert (order.model, order.vocabulary, order.present) == ("acme.demo", 500, Serving())
    assert order.limits.threads >= 1


def test_a_queue_that_fits_is_told_and_written_when_asked_for(
    tuner: ServingTuner, world: World
) -> None:
    policy = QueuePolicy(max_queue_size=5, default_timeout_seconds=0.5)  # 9/s, for half a second
    assert tuned(tuner, world)["queue_policy"] == policy
    assert deployment(world).serving.queue_policy == QueuePolicy()
    tuned(tuner, world, replace(WISH, with_queue=True))
    assert deployment(world).serving.queue_policy == policy


def test_a_dry_run_and_a_tie_change_nothing(
    tuner: ServingTuner, world: World, job: PlayedJob
) -> None:
    before = deployment(world)
    assert not tuned(tuner, world, replace(WISH, is_dry_run=True))["is_written"]
    job.is_better = False
    assert not tuned(tuner, world)["is_written"]
    assert deployment(world) == before


def test_a_deployment_that_was_changed_meanwhile_stays(
    tuner: ServingTuner, world: World, job: PlayedJob
) -> None:
    other = replace(deployment(world), serving=Serving(max_batch_size=3))
    job.meanwhile = lambda: world.app.update_deployment(other, None)
    result = tuned(tuner, world)
    assert not result["is_written"]
    assert "changed meanwhile" in result["reason"]
    assert deployment(world).serving == result["deployment"].serving == Serving(max_batch_size=3)


def test_a_job_that_broke_off_says_why(tuner: ServingTuner, world: World, job: PlayedJob) -> None:
    def broken() -> None:
        raise FailedPrecondition("signal 9", reason="TUNING_FAILED")

    job.meanwhile = broken
    with pytest.raises(FailedPrecondition, match="signal 9"):
        tuned(tuner, world)
    job.meanwhile = lambda: None
    assert tuned(tuner, world)["is_written"]


def test_one_search_at_a_time(tuner: ServingTuner, world: World, tmp_path: Path) -> None:
    with (
        ModelRepository(tmp_path / "triton", EngineSettings()).trials(),
        pytest.raises(ResourceExhausted),
    ):
        tuned(tuner, world)


def test_a_model_that_does_not_serve_is_refused(tuner: ServingTuner, world: World) -> None:
    made = world.app.match_deployments("acme", "later", final=False)[0]
    world.finish(1, "later")
    with pytest.raises(FailedPrecondition, match="serves"):
        next(tuner.tune("acme", made.id, WISH, threading.Event()))
