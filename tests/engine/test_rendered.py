"""What real Triton says to configurations for backends that are not here: it lacks the backend,
and has nothing against the configuration. With another backend in its place it takes them whole,
so an ensemble's tensors fit together.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from millrace_mesh.triton import (
    GRPC_HEADER,
    TritonPorts,
    tritonserver_command,
    tritonserver_environment,
)
from millrace_registry import triton_tensorrt_llm, triton_vllm
from millrace_testkit.servers import free_port, wait_until
from tests.engine.served import CONTROL_KEY, ENVIRONMENT, _is_live, is_installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
]
VLLM = triton_vllm.VllmModel(
    name="vllm",
    artifacts={1: "/artifact"},
    context_tokens=512,
    adapters={1: triton_vllm.Adapters({"a": "/a"}, 8)},
)
ENGINE = triton_tensorrt_llm.TensorRtLlmModel(
    name="trt", version=1, engine_folder="/engine", tokenizer_folder="/tokenizer"
)
# Instead of the code that is in NVIDIA's image only.
STANDING_IN = b"class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


def tensorrt_llm_files(model: triton_tensorrt_llm.TensorRtLlmModel) -> dict[str, bytes]:
    code = dict.fromkeys(triton_tensorrt_llm.image_files(model), STANDING_IN)
    return {**triton_tensorrt_llm.render(model), **code}


def stood_in_for() -> dict[str, bytes]:
    """Both, with the Python backend where NVIDIA's would be."""
    vllm = triton_vllm.render(replace(VLLM, name="any-vllm"))
    engine = tensorrt_llm_files(replace(ENGINE, name="any-trt"))
    files = {
        **changed(vllm, b'backend: "vllm"', b'backend: "python"'),
        **changed(engine, b'backend: "tensorrtllm"', b'backend: "python"'),
    }
    code = ("any-vllm/1/model.py", "any-trt.tensorrt_llm/1/model.py")
    return {**files, **dict.fromkeys(code, STANDING_IN)}


def changed(files: dict[str, bytes], old: bytes, new: bytes) -> dict[str, bytes]:
    """The same, with something replaced in each configuration."""
    return {
        path: content.replace(old, new) if path.endswith(".pbtxt") else content
        for path, content in files.items()
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    folder = tmp_path_factory.mktemp("rendered")
    files = {**triton_vllm.render(VLLM), **tensorrt_llm_files(ENGINE), **stood_in_for()}
    broken = tensorrt_llm_files(replace(ENGINE, name="broken"))
    files |= changed(broken, b"TYPE_UINT64", b"TYPE_MADE_UP")
    for path, content in files.items():
        (folder / "models" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "models" / path).write_bytes(content)
    ports = TritonPorts(grpc=free_port(), http=free_port(), metrics=free_port())
    command = tritonserver_command(
        ENVIRONMENT, folder / "models", ports, CONTROL_KEY, exit_timeout_seconds=1
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=tritonserver_environment(ENVIRONMENT), stdout=log, stderr=log
        )
    with triton.InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
        wait_until(lambda: _is_live(client), 60, "tritonserver")
        yield client
    process.terminate()
    process.wait(30)


def load(server: triton.InferenceServerClient, model: str) -> None:
    server.load_model(model, headers={GRPC_HEADER: CONTROL_KEY}, client_timeout=60)


def refusal(server: triton.InferenceServerClient, model: str) -> str:
    with pytest.raises(InferenceServerException) as error:
        load(server, model)
    return str(error.value.message())


@pytest.mark.parametrize(
    ("model", "backend"),
    [("vllm", "vllm"), ("trt.tensorrt_llm", "tensorrtllm"), ("trt", "tensorrtllm")],
)
def test_it_lacks_the_backend_only(
    server: triton.InferenceServerClient, model: str, backend: str
) -> None:
    assert f"unable to find backend library for backend '{backend}'" in refusal(server, model)


@pytest.mark.parametrize("model", ["any-vllm", "any-trt"])
def test_with_another_backend_it_takes_them(
    server: triton.InferenceServerClient, model: str
) -> None:
    load(server, model)
    assert server.is_model_ready(model)


def test_a_configuration_that_is_wrong_would_be_seen(server: triton.InferenceServerClient) -> None:
    assert "failed to poll" in refusal(server, "broken.tensorrt_llm")
