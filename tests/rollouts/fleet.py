"""A real registry, a real gateway, and a played Triton, with models that are rolled out.

The registry is composed as in ``millrace_registry.__main__``, in this process, without NATS: an
artifact's fact is handed to it directly. The gateway is the service itself, a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.registry.v1 import service_pb2 as pb
from millrace.registry.v1 import service_pb2_grpc as rpc
from millrace_registry.api import RegistryServicer
from millrace_registry.control_loop import ControlLoop
from millrace_registry.domain import Content, Rollout, triton_model_name, utc_now
from millrace_registry.triton import Triton
from millrace_runtime import golden, manifest
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import Database, open_database
from millrace_runtime.golden import GoldenPrompt
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.servers import free_port, is_listening, wait_until
from tests.rollouts import behaviour
from tests.rollouts.behaviour import Behaviour

# The registry's own tests know how to fill a registry; they are not a package.
sys.path.append(str(Path(__file__).parents[2] / "services" / "registry" / "tests"))

from registry_builders import World

TENANT = "default"
_PARENT = f"tenants/{TENANT}"
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.5  # as the service's own
_PROMPTS = [
    GoldenPrompt(
        f"golden/{number:02}", [number + 1, 2, 3], [4, 5, number + 6], "before", "after", -2.0
    )
    for number in range(24)
]


class Registry(World):
    """Its artifacts say what their versions' chat templates are."""

    def __init__(self, database: Database, folder: Path, endpoint: str) -> None:
        triton = Triton(endpoint, None)
        scoring = ThreadPoolExecutor(16)
        super().__init__(
            database, folder, utc_now, triton=triton, endpoint=endpoint, scoring=scoring
        )
        self._plans = folder / "plans"
        self._templates: dict[str, str] = {}
        self._writing = threading.Lock()

    def roll_out(self, model: str, number: int, how: Behaviour) -> None:
        """A new version of ``model`` comes, as from the compressor."""
        behaviour.write(self._plans, triton_model_name(TENANT, model), number, how)
        with self._writing:
            self._templates[f"{model}-{number}"] = how.template
            self.finish(number, model, TENANT)

    def artifact(self, name: str, parity: object = None) -> Content:
        target = self.content.working_path(f"artifacts/{name}")
        temporary = manifest.temporary_sibling(target)
        (temporary / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
        tokenizer = {"eos_token": "<|im_end|>", "chat_template": self._templates[name]}
        (temporary / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (temporary / "weights.bin").write_text(name)
        golden.write(temporary, _PROMPTS)
        digest = manifest.commit(temporary, target, "artifact", {})
        self.artifacts[name] = Content(self.content.publish(target), digest, 100)
        return self.artifacts[name]

    def newest_rollout(self, model: str) -> Rollout | None:
        found = self.catalogue.rollouts(TENANT, model, "", 1)
        return found[0] if found else None


class Fleet:
    """What a run needs; ``running`` makes one.

    Attributes:
        url, key: of the gateway.
        log: what the played engine has seen (``played_engine.py``).
    """

    def __init__(self, registry: Registry, address: str, url: str, key: str, log: Path) -> None:
        self.registry = registry
        self.url, self.key = url, key
        self.log = log
        self._address = address

    def deploy(self, model: str, strategy: pb.RolloutStrategy) -> None:
        deployment = pb.Deployment(
            model=model, targets=[compressor_pb2.TARGET_OPENVINO_INT8], strategy=strategy
        )
        request = pb.CreateDeploymentRequest(parent=_PARENT, deployment=deployment)
        with open_channel(self._address, None) as channel:
            call(rpc.RegistryServiceStub(channel).CreateDeployment, request)


@contextmanager
def running(folder: Path) -> Iterator[Fleet]:
    """All of it, in an empty ``folder``."""
    with ExitStack() as stack:
        engine, log = free_port(), folder / "engine.log"
        (folder / "triton").mkdir(parents=True)
        arguments = [str(engine), *(str(folder / name) for name in ("triton", "plans")), str(log)]
        stack.enter_context(_process("tests.rollouts.played_engine", arguments, {}, folder))
        wait_until(lambda: is_listening(engine), _START_SECONDS, "the played engine")
        database = open_database(f"sqlite:///{folder}/registry.db")
        stack.callback(database.close)
        registry = Registry(database, folder, f"127.0.0.1:{engine}")
        address = stack.enter_context(_served(registry))
        http, key = free_port(), folder / "operator-key"
        settings = {
            "HTTP_ADDRESS": f"127.0.0.1:{http}",
            "GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
            "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "REGISTRY_ADDRESS": address,
            "NATS_URL": "nats://127.0.0.1:1",
            "OPERATOR_KEY_PATH": str(key),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "LOG_LEVEL": "WARNING",
        }
        environment = {f"MILLRACE_GATEWAY_{name}": value for name, value in settings.items()}
        stack.enter_context(_process("millrace_gateway", [], environment, folder))
        wait_until(lambda: is_listening(http), _START_SECONDS, "the gateway")
        yield Fleet(registry, address, f"http://127.0.0.1:{http}", key.read_text().strip(), log)


@contextmanager
def _served(registry: Registry) -> Iterator[str]:
    """Over gRPC and with its control loop at work; where."""
    loop = ControlLoop(registry.controller, registry.control, _LOOK_SECONDS)
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[ServiceInterceptor(None)])
    RegistryServicer(registry.app, registry.control, loop.draining).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    thread = threading.Thread(target=loop.run, name="control")
    thread.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        loop.drain()
        thread.join()
        server.stop(None).wait()


@contextmanager
def _process(
    module: str, arguments: Sequence[str], environment: dict[str, str], folder: Path
) -> Iterator[None]:
    with (folder / f"{module}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            cwd=_ROOT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
