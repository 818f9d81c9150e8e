"""A search for settings on a real Triton, while the model that serves goes on answering."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton

from millrace_registry.domain import Content, Deployment, Interface, Model, Serving, Version
from millrace_registry.repository import trial_name
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.service import Endpoint, ServingTuner, Wish
from millrace_registry.tuning.space import Limits
from millrace_runtime.errors import ResourceExhausted
from tests.engine.served import CONTROL_KEY, MODEL, ServedEngine, is_installed
from tests.engine.tiny_model import CONTEXT_TOKENS, TinyModel

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
GENEROUS = Target(first_token_seconds=60, token_seconds=60)
QUICK = Wish(
    GENEROUS, traffic=((24, 8),), trials=1, seconds=0.5, limits=Limits(1, 2, 1, 64), seed=3
)


@dataclass
class PlayedDeployments:
    """One deployment of the model that the engine serves."""

    found: Deployment

    def deployment(self, tenant: str, id: str) -> Deployment:
        return self.found

    def model(self, tenant: str, id: str) -> Model:
        return Model(tenant, id, NOW, serving_version=1)

    def version(self, tenant: str, model: str, number: int) -> Version:
        version: Any = Version(
            tenant=tenant,
            model=model,
            number=number,
            target="TARGET_OPENVINO_FP32",
            artifact=Content("file:///artifact", "sha256:" + "a" * 64, 1),
            checkpoint={},
            measurements={},
            compression="",
            create_time=NOW,
            traceparent="",
        )
        return replace(version, interface=Interface(CONTEXT_TOKENS, "", "", ""))

    def update_deployment(self, wanted: Deployment, expected_revision: int | None) -> Deployment:
        assert expected_revision == self.found.revision
        self.found = replace(wanted, revision=self.found.revision + 1)
        return self.found


@dataclass
class PlayedContent:
    artifact: Path

    def directory(self, uri: str, digest: str) -> Path:
        return self.artifact


@pytest.fixture
def deployments() -> PlayedDeployments:
    return PlayedDeployments(Deployment("default", "deployment-1", "tiny", NOW, NOW))


@pytest.fixture
def tuner(
    engine: ServedEngine, tiny: TinyModel, deployments: PlayedDeployments
) -> Iterator[ServingTuner]:
    endpoint = Endpoint(
        engine.address, CONTROL_KEY, engine.repository_folder, EngineSettings(threads=1)
    )
    content: Any = PlayedContent(tiny.artifact)
    yield ServingTuner(endpoint, deployments, content, threading.Event())
    assert not is_loaded(engine)
    assert not (engine.repository_folder / trial_name(MODEL)).exists()


def is_loaded(engine: ServedEngine) -> bool:
    with triton.InferenceServerClient(engine.address) as client:
        return bool(client.is_model_ready(trial_name(MODEL)))


def test_settings_are_measured_beside_the_model_that_serves(
    engine: ServedEngine, tuner: ServingTuner, deployments: PlayedDeployments
) -> None:
    trials, result = [], {}
    for news in tuner.tune("default", "deployment-1", QUICK, threading.Event()):
        if news["kind"] == "trial":
            assert engine.ask("import ", max_tokens=2).token_count == 2
            trials.append(news)
        elif news["kind"] == "result":
            result = dict(news)
    assert [trial["look_kind"] for trial in trials[:2]] == ["PRESENT", "CANDIDATE"]
    assert all(trial["state"] != "FAILED" for trial in trials), trials
    present = trials[0]["figures"]
    assert present["single_stream_first_token_seconds_p90"] > 0
    assert 0 < present["server_requests_per_second"] <= present["offline_requests_per_second"]
    assert result["is_written"] == result["is_better"]
    if result["is_written"]:
        winner = trials[result["winner"]]["serving"]
        assert deployments.found.serving.max_batch_size == winner["max_batch_size"]
    else:
        assert deployments.found.serving == Serving()


def test_one_search_at_a_time_and_it_ends_when_nobody_listens(tuner: ServingTuner) -> None:
    left = threading.Event()
    first = tuner.tune("default", "deployment-1", QUICK, left)
    assert next(first)["phase"] == "loading"
    with pytest.raises(ResourceExhausted):
        next(tuner.tune("default", "deployment-1", QUICK, threading.Event()))
    left.set()
    assert "result" not in [news["kind"] for news in first]
