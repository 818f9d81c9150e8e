"""What an unmodified `tritonclient` sees on the Triton of a mesh."""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.e2e.lifecycle import Mesh


@pytest.fixture
def client(mesh: Mesh) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(mesh.layout.address("triton.grpc")) as client:
        yield client


def test_it_sees_the_served_version_and_the_canarys_split(
    mesh: Mesh, model: str, client: triton.InferenceServerClient
) -> None:
    rollouts = mesh.get(f"/rollouts?model={model}")["data"]
    served = max(r["to_version"] for r in rollouts if r["status"] == "settled")
    assert client.is_model_ready(f"default.{model}", str(served))
    metadata = client.get_model_metadata(f"default.{model}", str(served))
    assert str(served) in metadata.versions
    statistics = client.get_inference_statistics(f"default.{model}", str(served))
    answered = statistics.model_stats[0].inference_stats.success.count
    canary = next(r for r in rollouts if r["to_version"] == served)
    assert canary["requests"] > 0
    assert answered >= canary["requests"]


def test_it_may_not_control_the_repository(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException):
        client.load_model("default.plain")
    with pytest.raises(InferenceServerException):
        client.unload_model("default.plain")
