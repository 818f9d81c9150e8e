"""Fixtures of the gateway's tests: the whole gateway, on real sockets, before fake services."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Under --import-mode=importlib a test directory is not importable by itself.
sys.path.insert(0, str(Path(__file__).parent))
from gateway_mesh import TRACKED_FILE_BYTES, Mesh

from millrace_runtime.tracking import Tracking, tracked_experiment


@pytest.fixture(scope="session")
def shared_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("gateway"))
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture
def mesh(shared_mesh: Mesh) -> Iterator[Mesh]:
    """A running gateway; what the fakes hold is forgotten between tests."""
    shared_mesh.reset()
    yield shared_mesh
    shared_mesh.reset()


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A gateway whose MLflow knows a run of each of two tenants, told of as jobs do.

    Its tests share what it holds, and take new names.
    """
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    card = folder / "README.md"
    card.write_text("# what it is")
    for tenant, job in (("default", "run-1"), ("acme", "run-2")):
        tracking = Tracking(uri, job, tracked_experiment(tenant, "demo"), {"seed": 7})
        for step in (1, 2, 3):
            tracking.log(step, {"train_loss": 4.0 / step})
        tracking.log_file(card, "step-3")
        tracking.close()
    mesh = Mesh(folder, mlflow_tracking_uri=uri, maximum_file_bytes=TRACKED_FILE_BYTES)
    mesh.start()
    yield mesh
    mesh.stop()
