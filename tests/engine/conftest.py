"""One tiny model, one Triton and one gateway for all tests of the engine."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace_runtime import manifest
from tests.engine.served import MODEL, ServedEngine
from tests.engine.tiny_model import CONTEXT_TOKENS, TinyModel

# The gateway as its own tests compose it.
sys.path.insert(0, str(Path(__file__).parents[2] / "services" / "gateway" / "tests"))
from gateway_mesh import Mesh


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    model = TinyModel(tmp_path_factory.mktemp("tiny"))
    model.make()
    return model


@pytest.fixture(scope="session")
def engine(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    served = ServedEngine(tmp_path_factory.mktemp("triton"), tiny.artifact)
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="session")
def gateway(
    tiny: TinyModel, engine: ServedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    """The real gateway before the real engine; the registry alone is played."""
    mesh = Mesh(tmp_path_factory.mktemp("gateway"))
    mesh.start()
    try:
        mesh.serve_routes([route_to(mesh, tiny, engine)])
        yield mesh
    finally:
        mesh.stop()


def route_to(mesh: Mesh, tiny: TinyModel, engine: ServedEngine) -> Any:
    """To the engine; the artifact that it serves is committed in the gateway's data root."""
    folder = mesh.data_root / "artifact"
    temporary = manifest.temporary_sibling(folder)
    shutil.copytree(tiny.artifact, temporary, dirs_exist_ok=True)
    digest = manifest.commit(temporary, folder, "artifact", {})
    version = mesh.registry.add_version("default", 1)
    version.artifact.uri, version.artifact.digest = folder.as_uri(), digest
    version.name = "tenants/default/models/tiny/versions/1"
    mesh.registry.versions[version.name] = version
    target = {"endpoints": [engine.address], "artifact_digest": digest}
    route = mesh.route("tiny", **target, context_length=CONTEXT_TOKENS, chat_template="")
    assert route.triton_model == MODEL
    return route
