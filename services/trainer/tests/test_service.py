"""The service as a process, beside a real NATS server and a data service's stand-in."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import nats
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.js.errors import NotFoundError
from tiny_run import ARCHITECTURE, write_dataset

from millrace.data.v1 import service_pb2 as data_pb
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.topology import STREAM
from millrace.trainer.v1 import service_pb2 as pb
from millrace.trainer.v1 import service_pb2_grpc
from millrace_runtime import manifest
from millrace_runtime.settings import describe
from millrace_testkit.servers import NatsServer, free_port, wait_until
from millrace_trainer.settings import TrainerSettings

TOKEN = "an-internal-secret"
CORPUS = "tenants/acme/datasets/dataset-1"
STEPS = {"total_steps": 600, "checkpoint_every_steps": 200}
SMALL = {"batch_sequences": 4, "micro_batch_sequences": 2, "warmup_steps": 5}


class DataStandIn(data_grpc.DataServiceServicer):
    """Knows one dataset, which is ready."""

    def __init__(self, content: lifecycle_pb2.Content) -> None:
        self._content = content

    def GetDataset(
        self, request: data_pb.GetDatasetRequest, context: grpc.ServicerContext
    ) -> data_pb.GetDatasetResponse:
        if request.name != CORPUS:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no dataset {request.name}")
        ready = lifecycle_pb2.WORK_STATE_SUCCEEDED
        dataset = data_pb.Dataset(name=CORPUS, state=ready, content=self._content)
        return data_pb.GetDatasetResponse(dataset=dataset)


class RunningService:
    """``python -m millrace_trainer`` with its state in a folder."""

    def __init__(self, folder: Path, nats_url: str, data_address: str) -> None:
        self.http, self.grpc = free_port(), free_port()
        settings = {
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc}",
            "HTTP_ADDRESS": f"127.0.0.1:{self.http}",
            "DATABASE_URL": f"sqlite:///{folder}/trainer.db",
            "NATS_URL": nats_url,
            "DATA_ROOT": str(folder / "data"),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "DATA_ADDRESS": data_address,
            "INTERNAL_TOKEN": TOKEN,
            "LEASE_SECONDS": "2",
            "RECONCILE_SECONDS": "0.5",
            "THREADS": "1",
        }
        self._environment = {f"MILLRACE_TRAINER_{name}": value for name, value in settings.items()}
        self._log = (folder / "service.log").open("ab")
        self._channel: grpc.Channel | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "millrace_trainer"],
            env={**os.environ, **self._environment},
            stderr=self._log,
        )
        wait_until(lambda: self.probe("readyz") == 200, 20, "the trainer")

    def probe(self, path: str) -> int:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http}/{path}", timeout=2
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=2) as answer:
            return str(answer.read().decode())

    def channel(self) -> grpc.Channel:
        if self._channel is None:
            # A channel that waits for a minute before it tries again outlives no restart.
            options = [("grpc.max_reconnect_backoff_ms", 200)]
            self._channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}", options)
        return self._channel

    def call(self, method: str, request: Any) -> Any:
        stub = service_pb2_grpc.TrainerServiceStub(self.channel())
        metadata = [("x-millrace-token", TOKEN)]
        return getattr(stub, method)(request, metadata=metadata, wait_for_ready=True, timeout=20)

    def run(self, name: str) -> pb.Run:
        return self.call("GetRun", pb.GetRunRequest(name=name)).run

    def checkpoints(self, name: str) -> list[pb.Checkpoint]:
        """Newest first."""
        request = pb.ListCheckpointsRequest(parent=name)
        return list(self.call("ListCheckpoints", request).checkpoints)

    def end(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal, wait for the end; the processes that the service had started."""
        assert self.process is not None
        jobs = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        self.process.wait(timeout=20)
        return jobs

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)
        self._log.close()


@pytest.fixture
def data_address(tmp_path: Path) -> Iterator[str]:
    folder, digest = write_dataset(tmp_path / "data" / "datasets")
    size_bytes = manifest.verify(folder, digest).size_bytes
    content = lifecycle_pb2.Content(uri=folder.as_uri(), digest=digest, size_bytes=size_bytes)
    server = grpc.server(ThreadPoolExecutor(2))
    data_grpc.add_DataServiceServicer_to_server(DataStandIn(content), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def service(tmp_path: Path, nats_server: NatsServer, data_address: str) -> Iterator[RunningService]:
    running = RunningService(tmp_path, nats_server.url, data_address)
    running.start()
    yield running
    running.close()


def create(service: RunningService) -> str:
    request = pb.CreateRunRequest(
        parent="tenants/acme",
        model="demo",
        dataset=CORPUS,
        architecture=pb.Architecture(**ARCHITECTURE),
        hyperparameters=pb.Hyperparameters(**STEPS, **SMALL),
    )
    return str(service.call("CreateRun", request).run.name)


def facts_on(url: str) -> list[dict[str, Any]]:
    """Every fact on the stream; none when nothing was published yet and there is no stream."""

    async def read() -> list[dict[str, Any]]:
        client = await nats.connect(url)
        jetstream = client.jetstream()
        try:
            count = (await jetstream.stream_info(STREAM)).state.messages
            subscription = await jetstream.subscribe("millrace.>", ordered_consumer=True)
            messages = [await subscription.next_msg(timeout=5) for _ in range(count)]
            return [json.loads(message.data) for message in messages]
        except NotFoundError:
            return []
        finally:
            await client.close()

    return asyncio.run(read())


def test_killed_in_the_middle_of_a_run_and_drained_in_another_it_finishes(
    service: RunningService, nats_server: NatsServer
) -> None:
    name = create(service)
    for number, checkpoints in ((signal.SIGKILL, 1), (signal.SIGTERM, 2)):
        wait_until(lambda: len(service.checkpoints(name)) >= checkpoints, 60, "a checkpoint")  # noqa: B023
        assert service.run(name).state == lifecycle_pb2.WORK_STATE_RUNNING
        jobs = service.end(number)
        assert jobs
        _, alive = psutil.wait_procs(jobs, timeout=3)
        assert alive == []
        service.start()
    wait_until(lambda: service.run(name).state == lifecycle_pb2.WORK_STATE_SUCCEEDED, 60, name)
    found = service.checkpoints(name)
    assert [(c.step, c.final) for c in found] == [(600, True), (400, False), (200, False)]
    for checkpoint in found:
        path = Path(checkpoint.content.uri.removeprefix("file://"))
        manifest.verify(path, checkpoint.content.digest)
    wait_until(lambda: len(facts_on(nats_server.url)) >= 5, 10, "the facts")
    facts = facts_on(nats_server.url)
    told = [fact["data"]["content"]["digest"] for fact in facts if "content" in fact["data"]]
    assert told == [checkpoint.content.digest for checkpoint in reversed(found)]
    assert len(facts) == 5  # the three, and that the run started and succeeded
    metrics = service.call("ListRunMetrics", pb.ListRunMetricsRequest(parent=name)).metrics
    steps = [metric.step for metric in metrics]
    assert steps == sorted(set(steps))
    assert metrics[-1].metrics["loss"] < metrics[0].metrics["loss"]
    wait_until(
        lambda: 'millrace_training_work_count{state="SUCCEEDED"} 1.0' in service.metrics(),
        10,
        "the metric",
    )


def test_alone_it_is_healthy_and_ends_when_told(service: RunningService) -> None:
    health = health_pb2_grpc.HealthStub(service.channel())
    request = health_pb2.HealthCheckRequest(service="millrace.trainer.v1.TrainerService")
    assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
    stub = service_pb2_grpc.TrainerServiceStub(service.channel())
    with pytest.raises(grpc.RpcError) as raised:
        stub.ListRuns(pb.ListRunsRequest(parent="tenants/acme"))
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert service.probe("livez") == 200
    assert service.end(signal.SIGTERM) == []
    assert service.process is not None
    assert service.process.returncode == 0


def test_every_setting_is_explained_by_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace_trainer", "--help"], capture_output=True, check=True
    )
    text = done.stdout.decode()
    assert describe(TrainerSettings) in text
    for name in TrainerSettings.model_fields:
        assert f"MILLRACE_TRAINER_{name.upper()}" in text
