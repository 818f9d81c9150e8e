"""Searches for settings on a real Triton, by a registry of which the rest is played.

``python -m tests.engine.searches DATABASE ADDRESS REPOSITORY ARTIFACT`` is one that carries out
what there is, and may be killed.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from millrace_registry.domain import (
    Content,
    Deployment,
    Interface,
    Model,
    RequestKey,
    Version,
)
from millrace_registry.rows import deployment_of, deployment_values
from millrace_registry.schema import DEPLOYMENTS, METADATA
from millrace_registry.triton_config import EngineSettings
from millrace_registry.tuning.app import TuningApp
from millrace_registry.tuning.load import Target
from millrace_registry.tuning.resource import Progress, ServingTuning, Wish
from millrace_registry.tuning.service import Endpoint, ServingTuner
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.store import TuningStore
from millrace_registry.tuning.trial import Trial
from millrace_runtime import owner
from millrace_runtime.database import Database, open_database
from millrace_runtime.leases import Lease
from tests.engine.served import CONTROL_KEY
from tests.engine.tiny_model import CONTEXT_TOKENS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GENEROUS = Target(first_token_seconds=60, token_seconds=60)
QUICK = Wish(
    GENEROUS, traffic=((24, 8),), trials=1, seconds=0.5, limits=Limits(1, 2, 1, 64), seed=3
)


class PlayedDeployments:
    """One deployment of the model that the engine serves, in a table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self) -> None:
        METADATA.create_all(self._database.engine)
        made = Deployment("default", "deployment-1", "tiny", NOW, NOW)
        values = {"id": made.id, "tenant": made.tenant, **deployment_values(made)}
        with self._database.transaction() as connection:
            connection.execute(DEPLOYMENTS.insert().values(**values))

    def deployment(self, tenant: str, id: str) -> Deployment:
        with self._database.transaction() as connection:
            return deployment_of(connection.execute(DEPLOYMENTS.select()).one())

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


class PlayedContent:
    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact

    def directory(self, uri: str, digest: str) -> Path:
        return self._artifact


class WatchedStore(TuningStore):
    """Tells of each look, and of each thing that is done, once it is kept."""

    on_trial: Callable[[Trial], None] = staticmethod(lambda trial: None)
    on_progress: Callable[[], None] = staticmethod(lambda: None)

    def record_trial(self, lease: Lease, trial: Trial, progress: Progress) -> None:
        super().record_trial(lease, trial, progress)
        self.on_trial(trial)

    def record_progress(self, lease: Lease, progress: Progress) -> None:
        super().record_progress(lease, progress)
        self.on_progress()


class Searches:
    """Searches on the engine at ``address``, their rows and who carries them out."""

    def __init__(self, url: str, address: str, repository: Path, artifact: Path) -> None:
        self.database = open_database(url)
        self.deployments = PlayedDeployments(self.database)
        self.store = WatchedStore(
            self.database, endpoint="here", owner=owner.this_process(), lease_seconds=60
        )
        self.app = TuningApp(self.store, self.deployments, ring_worker=lambda: None)
        content: Any = PlayedContent(artifact)
        self._tuner = ServingTuner(
            Endpoint(address, CONTROL_KEY, repository, EngineSettings(threads=1)),
            self.deployments,
            self.store,
            content,
            ring_controller=lambda: None,
        )

    def create(self) -> ServingTuning:
        return self.app.create("default", "deployment-1", QUICK, RequestKey("", ""))

    def work(self, stop: threading.Event) -> None:
        lease = self.store.claim()
        assert lease is not None
        try:
            self._tuner.perform(lease, stop)
        finally:
            self.store.release(lease)

    def get(self, made: ServingTuning) -> ServingTuning:
        return self.app.get("default", made.id)[0]


if __name__ == "__main__":
    url, address, repository, artifact = sys.argv[1:]
    Searches(url, address, Path(repository), Path(artifact)).work(threading.Event())
