"""A gateway that is killed amid a batch: ``python -m millrace_gateway``, SIGKILL, and again."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gateway_fakes import (
    CHATML,
    DIGEST,
    INTERNAL_TOKEN,
    Answer,
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
from test_batches import CHAT, ended, jsonl, line, read, upload

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_testkit.servers import free_port, is_listening, wait_until

LINES = 24


class Services:
    """The services and Triton, which outlive the gateway."""

    def __init__(self) -> None:
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._started.wait(20)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _main(self) -> None:
        self.data, self.triton, self.registry = FakeData(Seen()), FakeTriton(), FakeRegistry()
        triton, triton_address = await start_triton(self.triton)
        target = registry_pb2.RouteTarget(
            version=1,
            share=1.0,
            endpoints=[triton_address],
            artifact_digest=DIGEST,
            context_length=512,
            chat_template=CHATML,
        )
        self.registry.routes = [
            registry_pb2.Route(
                tenant="default", model="demo", triton_model="default.demo", targets=[target]
            )
        ]
        services, self.address = await start_services(
            self.data, FakeTrainer(), FakeTuner(self.data), FakeCompressor(), self.registry
        )
        self._started.set()
        await asyncio.to_thread(self._stop.wait)
        await asyncio.gather(services.stop(None), triton.stop(None))


@pytest.fixture
def services() -> Iterator[Services]:
    found = Services()
    yield found
    found.end()


class Gateway:
    """A gateway process; started again it has the same database and port."""

    def __init__(self, folder: Path, services: Services) -> None:
        self._port, self._key_path = free_port(), folder / "operator-key"
        self._environment = {
            **os.environ,
            **{
                f"MILLRACE_GATEWAY_{name}": value
                for name, value in {
                    "HTTP_ADDRESS": f"127.0.0.1:{self._port}",
                    "GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
                    "DATABASE_URL": f"sqlite:///{folder}/gateway.db",
                    "OPERATOR_KEY_PATH": str(self._key_path),
                    "SCRATCH_DIRECTORY": str(folder / "scratch"),
                    "NATS_URL": f"nats://127.0.0.1:{free_port()}",
                    "INTERNAL_TOKEN": INTERNAL_TOKEN,
                    "BATCH_CONCURRENCY": "3",
                    **{
                        f"{stage}_ADDRESS": services.address
                        for stage in ("DATA", "TRAINER", "TUNER", "COMPRESSOR", "REGISTRY")
                    },
                }.items()
            },
        }
        self._log = folder / "log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "millrace_gateway"], env=self._environment, stderr=log
            )
        wait_until(lambda: is_listening(self._port), 60, "the gateway")

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def client(self) -> openai.OpenAI:
        secret = self._key_path.read_text().strip()
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self._port}/v1", api_key=secret)


@pytest.fixture
def gateway(tmp_path: Path, services: Services) -> Iterator[Gateway]:
    found = Gateway(tmp_path, services)
    yield found
    found.kill()


def test_a_batch_survives_its_gateway(services: Services, gateway: Gateway) -> None:
    """What was answered is not asked again; what was under way is; each line is told once."""
    held = threading.Event()

    def answer_to(request: dict[str, Any]) -> Answer:
        is_late = not held.is_set() and len(services.triton.requests) > LINES // 2
        return Answer([request["prompt"]], pause_seconds=600 if is_late else 0)

    services.triton.answer_to = answer_to
    with gateway.client() as client:
        made = client.batches.create(
            input_file_id=upload(client, jsonl([line(n) for n in range(LINES)])),
            endpoint=CHAT,
            completion_window="24h",
        )

        def is_half_done() -> bool:
            counts = client.batches.retrieve(made.id).request_counts
            return counts is not None and counts.completed == LINES // 2

        wait_until(is_half_done, 60, "half of the lines are answered")
        wait_until(lambda: services.triton.running == 3, 30, "three more are under way")
    gateway.kill()
    held.set()
    gateway.start()
    with gateway.client() as client:
        batch = ended(client, made)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.completed == LINES
        output = read(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(LINES)]
    for n, one in enumerate(output):
        assert f"q{n}<" in one["response"]["body"]["choices"][0]["message"]["content"]
    assert len(services.triton.requests) == LINES + 3
    purposes = [file.purpose for file in services.data.files.rows.values()]
    assert len(purposes) == 2, "the input and one output"
