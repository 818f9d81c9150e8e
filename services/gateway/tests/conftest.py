"""Fixtures of the gateway's tests: the whole gateway, on real sockets, before fake services."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Under --import-mode=importlib a test directory is not importable by itself.
sys.path.insert(0, str(Path(__file__).parent))
from gateway_mesh import Mesh


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
