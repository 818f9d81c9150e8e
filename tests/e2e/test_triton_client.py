"""What an unmodified `tritonclient` sees on the Triton of a mesh, and through its gateway."""

import json
import queue
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
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


def test_the_gateway_speaks_its_protocol(mesh: Mesh, model: str) -> None:
    key = {"authorization": f"Bearer {mesh.key}"}
    with triton_http.InferenceServerClient(mesh.layout.address("gateway.http")) as over_http:
        assert over_http.is_server_ready(headers=key)
        assert over_http.is_model_ready(model, headers=key)
        metadata = over_http.get_model_metadata(model, headers=key)
        assert {"prompt", "sampling"} <= {tensor["name"] for tensor in metadata["inputs"]}
        config = over_http.get_model_config(model, headers=key)
        assert config["model_transaction_policy"]["decoupled"] is True
    heard: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(mesh.layout.address("gateway.grpc")) as over_grpc:
        over_grpc.start_stream(lambda result, error: heard.put((result, error)), headers=key)
        sampling = json.dumps({"max_tokens": 4, "temperature": 0, "ignore_eos": True})
        inputs = [_text("prompt", "def add(a, b):"), _text("sampling", sampling)]
        over_grpc.async_stream_infer(model, inputs, request_id="1")
        tokens, finish_reason = 0, b""
        while not finish_reason:
            result, error = heard.get(timeout=30)
            assert error is None, error
            tokens += int(result.as_numpy("token_count").sum())
            finish_reason = result.as_numpy("finish_reason")[0]
        over_grpc.stop_stream()
    assert (tokens, finish_reason) == (4, b"length")
    answer = httpx.post(
        f"http://{mesh.layout.address('gateway.http')}/v2/models/{model}/generate",
        json={"text_input": "def add(a, b):", "parameters": {"max_tokens": 4, "temperature": 0}},
        headers=key,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_name"] == model
    assert 1 <= answer.json()["token_count"] <= 4


def _text(name: str, text: str) -> Any:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], dtype=np.object_))
    return tensor
