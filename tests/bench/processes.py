"""The programs that are measured, each a process of its own on loopback."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace_mesh.triton import (
    GRPC_HEADER,
    TritonPorts,
    tritonserver_command,
    tritonserver_environment,
)
from millrace_registry.triton_config import (
    EngineSettings,
    generation_config,
    print_config,
    write_engine,
)
from millrace_testkit.servers import free_port, is_listening, wait_until

TRITON_ENVIRONMENT = Path(".venv-triton").resolve()
MODEL = "bench"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRITON_MODEL = "default.bench"
_CONTROL_KEY = "bench"
_START_SECONDS = 120.0
_KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A running OpenAI-compatible server; ``url`` ends in ``/v1``."""

    url: str
    key: str
    pid: int

    def cpu_seconds(self) -> float:
        """What it and its children have used of the processors so far."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)


class _PlayedRegistry(registry_grpc.RegistryServiceServicer):
    """Says where the one model is, and hears how it answers."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def WatchRoutes(self, request: Any, context: Any) -> Iterator[Any]:
        target = registry_pb2.RouteTarget(
            version=1,
            share=1,
            endpoints=[self._endpoint],
            artifact_digest="sha256:" + "b" * 64,
            context_length=1024,
            chat_template=CHAT_TEMPLATE,
            eos_token="<|im_end|>",
        )
        route = registry_pb2.Route(
            tenant="default", model=MODEL, triton_model=TRITON_MODEL, targets=[target]
        )
        yield registry_pb2.WatchRoutesResponse(revision=1, routes=[route])
        self._stopped.wait()

    def ReportAnswers(self, request: Any, context: Any) -> Any:
        return registry_pb2.ReportAnswersResponse()


@contextmanager
def gateway(
    folder: Path,
    endpoint: str,
    more_settings: Mapping[str, object] = MappingProxyType({}),
    module: str = "millrace_gateway",
) -> Iterator[Server]:
    """A gateway whose one model is served by the Triton at ``endpoint``.

    Args:
        more_settings: by their names in ``GatewaySettings``.
        module: what is run: the gateway, or what runs it.
    """
    folder.mkdir(parents=True)
    with _registry(endpoint) as registry_address:
        http, rpc = free_port(), free_port()
        settings = {
            "HTTP_ADDRESS": f"127.0.0.1:{http}",
            "GRPC_ADDRESS": f"127.0.0.1:{rpc}",
            "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "REGISTRY_ADDRESS": registry_address,
            "NATS_URL": "nats://127.0.0.1:1",
            "OPERATOR_KEY_PATH": str(folder / "operator-key"),
            "LOG_LEVEL": "WARNING",
            **{name.upper(): str(value) for name, value in more_settings.items()},
        }
        environment = {f"MILLRACE_GATEWAY_{name}": value for name, value in settings.items()}
        command = [sys.executable, "-m", module]
        with _running(command, {**os.environ, **environment}, folder / "gateway.log") as process:
            wait_until(lambda: is_listening(http), _START_SECONDS, "the gateway")
            key = (folder / "operator-key").read_text().strip()
            yield Server(f"http://127.0.0.1:{http}/v1", key, process.pid)


@contextmanager
def triton_server(folder: Path, artifact: Path, settings: EngineSettings) -> Iterator[str]:
    """Triton with the model loaded; its gRPC address."""
    version = folder / "models" / TRITON_MODEL / "1"
    version.mkdir(parents=True)
    config = generation_config(TRITON_MODEL, [1], settings)
    (version.parent / "config.pbtxt").write_text(print_config(config))
    write_engine(version)
    (version / "artifact").symlink_to(artifact.resolve())
    ports = TritonPorts(free_port(), free_port(), free_port())
    command = tritonserver_command(TRITON_ENVIRONMENT, folder / "models", ports, _CONTROL_KEY, 5)
    environment = tritonserver_environment(TRITON_ENVIRONMENT)
    address = f"127.0.0.1:{ports.grpc}"
    with _running(command, environment, folder / "triton.log"):
        wait_until(lambda: is_listening(ports.grpc), _START_SECONDS, "Triton")
        _load(address)
        yield address


def triton_pid() -> int:
    """The process that ``triton_server`` started; it has children."""
    children = psutil.Process().children()
    return next(each.pid for each in children if each.name().startswith("tritonserver"))


@contextmanager
def null_engine(folder: Path) -> Iterator[str]:
    """A Triton that answers at once (``null_engine.py``); its gRPC address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.null_engine", str(port)]
    with _running(command, dict(os.environ), folder / "null-engine.log"):
        wait_until(lambda: is_listening(port), _START_SECONDS, "the null engine")
        yield f"127.0.0.1:{port}"


@contextmanager
def null_openai(folder: Path) -> Iterator[Server]:
    """An OpenAI server that answers at once (``null_openai.py``)."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.null_openai", str(port)]
    with _running(command, dict(os.environ), folder / "null-openai.log") as process:
        wait_until(lambda: is_listening(port), _START_SECONDS, "the null server")
        yield Server(f"http://127.0.0.1:{port}/v1", "none", process.pid)


@contextmanager
def litellm_proxy(folder: Path, environment: Path, backend: Server) -> Iterator[Server]:
    """LiteLLM's proxy, one worker, as its documentation starts it, before ``backend``."""
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: openai/{MODEL}\n      api_base: {backend.url}\n      api_key: none\n"
        "litellm_settings:\n  telemetry: false\n"
        "general_settings:\n  master_key: sk-bench\n"
    )
    command = [str(environment / "bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1"]
    settings = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with _running(command, settings, folder / "litellm.log") as process:
        wait_until(lambda: is_listening(port), _START_SECONDS, "the LiteLLM proxy")
        yield Server(f"http://127.0.0.1:{port}/v1", "sk-bench", process.pid)


@contextmanager
def _registry(endpoint: str) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    registry = _PlayedRegistry(endpoint)  # type: ignore[abstract]  # not at run time
    registry_grpc.add_RegistryServiceServicer_to_server(registry, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        registry.stop()
        server.stop(0).wait()


@contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:  # Triton may outlive its exit timeout
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _load(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        wait_until(lambda: _is_live(client), _START_SECONDS, "Triton's health")
        client.load_model(TRITON_MODEL, headers={GRPC_HEADER: _CONTROL_KEY})
        wait_until(lambda: client.is_model_ready(TRITON_MODEL, "1"), _START_SECONDS, "the model")


def _is_live(client: triton.InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live())
    except InferenceServerException:
        return False
