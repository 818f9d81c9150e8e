"""The whole gateway, composed as in production, in a thread of its own before fake services."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import uvloop
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
from pydantic import SecretStr

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway.__main__ import MIGRATIONS
from millrace_gateway.app import KeyRing, Keys
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.domain import Principal, Role
from millrace_gateway.permissions import Permissions, PermissionTable
from millrace_gateway.replicas import Replicas
from millrace_gateway.serving import serve
from millrace_gateway.settings import GatewaySettings
from millrace_gateway.store import OUTBOX, KeyTable
from millrace_gateway.webhooks.service import WebhookService
from millrace_runtime import owner
from millrace_runtime.database import migrate, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.relay import Relay
from millrace_testkit.servers import free_port, is_listening, wait_until

_Result = TypeVar("_Result")
_PATIENCE_SECONDS = 60.0  # httpx's own 5 s would fail a machine that is merely slow
TRACKED_FILE_BYTES = 2**20  # the most that the gateway with an MLflow takes of a file
OPERATOR = Principal("default", "key-test", Role.OPERATOR)


class Mesh:
    """A gateway on random ports, its fakes, and keys of two tenants."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.operator_key_path = folder / "secrets" / "operator-key"
        self.data_root = folder / "data"
        self._folder = folder
        self._settings = settings
        self._thread = threading.Thread(target=self._run, name="mesh")
        self._started = threading.Event()
        self._clients: list[openai.OpenAI | httpx.Client] = []

    def start(self) -> None:
        self.database = open_database(f"sqlite:///{self._folder}/gateway.db")
        migrate(self.database, MIGRATIONS)
        outbox = Outbox(OUTBOX)
        self.relay = Relay(self.database, outbox)
        self.table = KeyTable(self.database, outbox)
        self.keys = Keys(self.table, self.relay.ring)
        self.batches = BatchStore(
            self.database, outbox, owner=owner.this_process(), lease_seconds=15
        )
        self.keys.ensure_operator("default", self.operator_key_path)
        self.operator_secret = self.operator_key_path.read_text().strip()
        self.member_secret = self.keys.create(OPERATOR, "default", "member", Role.MEMBER)[1]
        self.other_secret = self.keys.create(OPERATOR, "acme", "other", Role.MEMBER)[1]
        self._thread.start()
        assert self._started.wait(10)
        wait_until(lambda: is_listening(self.http_port), 10, "REST")
        self.reset()

    def drain(self) -> None:
        """What SIGTERM does."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        while self._clients:
            self._clients.pop().close()
        if self._thread.is_alive():
            self.drain()
        self._thread.join(20)
        if self._thread.is_alive():
            awaited = [str(task.get_stack(limit=3)) for task in asyncio.all_tasks(self._loop)]
            raise AssertionError("the gateway did not stop; it awaits " + "; ".join(awaited))
        self.database.close()

    def reset(self) -> None:
        """Forget what the fakes hold; serve ``demo`` version 1."""
        while self._clients:
            self._clients.pop().close()
        for table in (
            self.data.files,
            self.data.datasets,
            self.trainer.runs,
            self.trainer.checkpoints,
            self.tuner.jobs,
            self.tuner.checkpoints,
            self.compressor.compressions,
            self.registry.deployments,
            self.registry.rollouts,
        ):
            table.rows.clear()
        self.registry.versions.clear()
        self.registry.clear_labels()
        self.registry.held.clear()
        self.registry.models = {"demo"}
        self.registry.refused = ""
        self.seen.metadata.clear()
        self.data.upload_parents.clear()
        self.triton.reset()
        self.serve_routes([self.route()])

    def route(self, model: str = "demo", tenant: str = "default", **target: Any) -> Any:
        """A route with one target, at the fake Triton."""
        fields = {
            "version": 1,
            "share": 1.0,
            "endpoints": [self.triton_address],
            "artifact_digest": DIGEST,
            "context_length": 512,
            "chat_template": CHATML,
            "eos_token": "<|im_end|>",
            **target,
        }
        return registry_pb2.Route(
            tenant=tenant,
            model=model,
            triton_model=f"{tenant}.{model}",
            targets=[registry_pb2.RouteTarget(**fields)],
        )

    def serve_routes(self, routes: list[Any]) -> None:
        """Publish a route table and wait until the gateway uses it."""

        async def publish() -> None:
            self.registry.set_routes(routes)

        self.in_loop(publish)
        models = sorted(route.model for route in routes if route.tenant == "default")
        versions = [t.version for r in routes for t in r.targets if r.tenant == "default"]

        client = self.http()

        def is_used() -> bool:
            listed = client.get("/v1/models").json()["data"]
            whole = [model for model in listed if ":ckpt-step-" not in model["id"]]
            seen = [version["version"] for model in whole for version in model["versions"]]
            return [model["id"] for model in whole] == models and seen == versions

        wait_until(is_used, 5, "the gateway uses the new routes")

    def in_loop(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Run a coroutine in the servers' loop."""

        async def run() -> _Result:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def openai(self, secret: str | None = None) -> openai.OpenAI:
        """The unmodified SDK; closed at ``reset``."""
        client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=secret or self.member_secret, max_retries=0
        )
        self._clients.append(client)
        return client

    def http(self, secret: str | None = None, **headers: str) -> httpx.Client:
        authorization = {"authorization": f"Bearer {secret or self.member_secret}"}
        client = httpx.Client(
            base_url=self.url, headers={**authorization, **headers}, timeout=_PATIENCE_SECONDS
        )
        self._clients.append(client)
        return client

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.seen, self.triton = Seen(), FakeTriton()
        self.data, self.trainer = FakeData(self.seen), FakeTrainer()
        self.tuner = FakeTuner(self.data)
        self.compressor, self.registry = FakeCompressor(), FakeRegistry()
        services, address = await start_services(
            self.data, self.trainer, self.tuner, self.compressor, self.registry
        )
        triton, self.triton_address = await start_triton(self.triton)
        addresses = {
            f"{stage}_address": address
            for stage in ("data", "trainer", "tuner", "compressor", "registry")
        }
        settings = GatewaySettings(
            **{
                "http_address": f"127.0.0.1:{self.http_port}",
                "grpc_address": self.grpc_address,
                "nats_url": f"nats://127.0.0.1:{free_port()}",
                "internal_token": SecretStr(INTERNAL_TOKEN),
                "drain_seconds": 1.0,
                "data_root": str(self.data_root),
                "operator_key_path": self.operator_key_path,
                "scratch_directory": self._folder / "scratch",
                **addresses,
                **self._settings,
            }
        )
        self._started.set()
        key_ring = KeyRing(self.table.find_live)
        alive = self.database.is_alive
        replicas = Replicas(self.database, owner.this_process())
        await serve(
            settings,
            self.keys,
            key_ring,
            self.relay,
            self.batches,
            WebhookService(settings, self.database),
            Permissions(PermissionTable(self.database)),
            replicas,
            alive,
            self._stop,
        )
        await asyncio.gather(services.stop(None), triton.stop(None))
