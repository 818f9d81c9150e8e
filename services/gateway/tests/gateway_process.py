"""``python -m millrace_gateway`` as processes that can be killed, before services that go on."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
from gateway_fakes import (
    CHATML,
    DIGEST,
    INTERNAL_TOKEN,
    FakeCompressor,
    FakeData,
    FakeRegistry,
    FakeTrainer,
    FakeTriton,
    FakeTuner,
    Seen,
    start_services,
    start_triton,
)

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_testkit.servers import free_port, is_listening, wait_until

TUNED = "ft:demo:default:docs:k3x9ab"


class GatedTriton(FakeTriton):
    """While ``is_held``, what it answers stands still after the first piece.

    Attributes:
        most: whose last piece had not been sent yet, at the same time.
    """

    def __init__(self) -> None:
        self._unfinished = set[str]()
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self.is_held, self.most = False, 0

    async def _respond(self, request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        self._unfinished.add(request["id"])
        self.most = max(self.most, len(self._unfinished))
        try:
            async for response in super()._respond(request, context):
                if any(output.name == "timing" for output in response.infer_response.outputs):
                    self._unfinished.discard(request["id"])
                yield response
                while self.is_held:
                    await asyncio.sleep(0.01)
        finally:
            self._unfinished.discard(request["id"])


class Services:
    """The services and Tritons, which outlive the gateways; all Tritons serve all models."""

    def __init__(self, tritons: int = 1) -> None:
        self.tritons = [GatedTriton() for _ in range(tritons)]
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._started.wait(20)

    @property
    def triton(self) -> GatedTriton:
        return self.tritons[0]

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _main(self) -> None:
        self.data, self.registry = FakeData(Seen()), FakeRegistry()
        started = [await start_triton(triton) for triton in self.tritons]
        target = registry_pb2.RouteTarget(
            version=1,
            share=1.0,
            endpoints=[address for _, address in started],
            artifact_digest=DIGEST,
            context_length=512,
            chat_template=CHATML,
        )
        self.registry.routes = [
            registry_pb2.Route(
                tenant="default", model=model, triton_model="default.demo", targets=[target]
            )
            for model in ("demo", TUNED)
        ]
        services, self.address = await start_services(
            self.data, FakeTrainer(), FakeTuner(self.data), FakeCompressor(), self.registry
        )
        self._started.set()
        await asyncio.to_thread(self._stop.wait)
        servers = (services, *(server for server, _ in started))
        await asyncio.gather(*(server.stop(None) for server in servers))


class Gateway:
    """A gateway process; started again it has the same database and port.

    Those of one ``folder`` share the database and the file of the operator's key.
    """

    def __init__(self, folder: Path, services: Services, **settings: str) -> None:
        self._port, self._key_path = free_port(), folder / "operator-key"
        self.url = f"http://127.0.0.1:{self._port}"
        wanted = {
            "HTTP_ADDRESS": f"127.0.0.1:{self._port}",
            "GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
            "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "OPERATOR_KEY_PATH": str(self._key_path),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "NATS_URL": f"nats://127.0.0.1:{free_port()}",
            "INTERNAL_TOKEN": INTERNAL_TOKEN,
            **{
                f"{stage}_ADDRESS": services.address
                for stage in ("DATA", "TRAINER", "TUNER", "COMPRESSOR", "REGISTRY")
            },
            **settings,
        }
        own = {f"MILLRACE_GATEWAY_{name}": value for name, value in wanted.items()}
        self._environment = {**os.environ, **own}
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start, without waiting for it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "millrace_gateway"], env=self._environment, stderr=log
            )

    def await_answers(self) -> None:
        wait_until(lambda: is_listening(self._port) or not self.is_alive, 60, "the gateway")
        assert self.is_alive, self._log.read_text()[-2000:]

    def start(self) -> None:
        self.launch()
        self.await_answers()

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def secret(self) -> str:
        return self._key_path.read_text().strip()

    def client(self, secret: str = "", max_retries: int = 2) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=secret or self.secret(),
            max_retries=max_retries,
            timeout=120,
        )

    def http(self) -> httpx.Client:
        """The operator's."""
        authorization = {"authorization": f"Bearer {self.secret()}"}
        return httpx.Client(base_url=self.url, headers=authorization, timeout=60)

    def metric(self, line: str) -> float:
        """0 before there is such a line."""
        for found in httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return 0.0
