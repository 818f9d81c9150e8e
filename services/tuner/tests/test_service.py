"""The service as a process: it trains for real, is killed meanwhile, and goes on."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import nats
import psutil
import pytest
from neighbour_servers import Neighbours
from tuner_builders import conversations, write_base, write_jsonl

from millrace.compressor.v1 import service_pb2 as compressor
from millrace.data.v1 import service_pb2 as data
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.registry.v1 import events_pb2 as registry_events
from millrace.registry.v1 import service_pb2 as registry
from millrace.topology import STREAM, fact_of
from millrace.tuner.v1 import method_pb2 as method_pb
from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import service_pb2_grpc
from millrace_runtime import cloudevent, manifest
from millrace_runtime.cloudevent import Event
from millrace_runtime.settings import describe
from millrace_testkit.servers import NatsServer, free_port, wait_until
from millrace_tuner.settings import TunerSettings

pytestmark = pytest.mark.timeout(600)

TOKEN = "an-internal-secret"
FILE = "tenants/acme/files/file-1"
EPOCHS = 5  # of 57 examples, 4 a step


class RunningService:
    """``python -m millrace_tuner`` with its state in a folder."""

    def __init__(self, folder: Path, nats_url: str, neighbours: str) -> None:
        self.http, self.grpc = free_port(), free_port()
        settings = {
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc}",
            "HTTP_ADDRESS": f"127.0.0.1:{self.http}",
            "DATABASE_URL": f"sqlite:///{folder}/tuner.db",
            "NATS_URL": nats_url,
            "DATA_ROOT": str(folder / "data"),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "INTERNAL_TOKEN": TOKEN,
            "LEASE_SECONDS": "2",
            "RECONCILE_SECONDS": "0.5",
            "DATA_ADDRESS": neighbours,
            "REGISTRY_ADDRESS": neighbours,
            "COMPRESSOR_ADDRESS": neighbours,
        }
        self._environment = {f"MILLRACE_TUNER_{name}": value for name, value in settings.items()}
        self._environment["MILLRACE_TRACE_DIRECTORY"] = str(folder / "traces")
        self._log = (folder / "service.log").open("ab")
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "millrace_tuner"],
            env={**os.environ, **self._environment},
            stderr=self._log,
        )
        wait_until(lambda: self.get("readyz") != "", 20, "the tuner")

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http}/{path}", timeout=2
            ) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def call(self, method: str, request: Any) -> Any:
        stub = service_pb2_grpc.TunerServiceStub(self._channel)
        metadata = [("x-millrace-token", TOKEN)]
        return getattr(stub, method)(request, metadata=metadata, wait_for_ready=True, timeout=20)

    def job(self, name: str) -> pb.Job:
        return self.call("GetJob", pb.GetJobRequest(name=name)).job

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._channel.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


@pytest.fixture
def neighbours(tmp_path: Path) -> Iterator[Neighbours]:
    """With a base model to tune and a file to learn from, in the shared data root."""
    running = Neighbours(TOKEN)
    base = tmp_path / "data/runs/checkpoint"
    digest = write_base(base, hidden_size=128, layers=4)
    content = lifecycle.Content(uri=base.as_uri(), digest=digest, size_bytes=1)
    running.registry.models = ["demo"]
    running.registry.resolved["demo"] = registry.Version(
        name="tenants/acme/models/demo/versions/1",
        number=1,
        state=registry.VERSION_STATE_SERVING,
        checkpoint=compressor.CheckpointReference(
            name="tenants/acme/runs/run-1/checkpoints/ckpt-1", model="demo", content=content
        ),
    )
    path = tmp_path / "data/files/train.jsonl"
    path.parent.mkdir()
    digest = write_jsonl(path, conversations(60))
    running.data.files[FILE] = data.File(
        name=FILE,
        purpose=data.FILE_PURPOSE_FINE_TUNE,
        content=lifecycle.Content(uri=path.as_uri(), digest=digest, size_bytes=1),
        example_count=60,
    )
    yield running
    running.stop()


@pytest.fixture
def service(
    tmp_path: Path, nats_server: NatsServer, neighbours: Neighbours
) -> Iterator[RunningService]:
    running = RunningService(tmp_path, nats_server.url, neighbours.address)
    running.start()
    yield running
    running.close()


def create(service: RunningService, epochs: int) -> str:
    request = pb.CreateJobRequest(
        parent="tenants/acme",
        base_model="demo",
        training_file=FILE,
        suffix="docs",
        method=method_pb.Method(
            hyperparameters=method_pb.Hyperparameters(epochs=epochs, batch_size=4),
            supervised=method_pb.Supervised(),
        ),
    )
    return str(service.call("CreateJob", request).job.name)


def publish(url: str, event: Event) -> None:
    async def send() -> None:
        client = await nats.connect(url)
        await client.jetstream().publish(event.subject, cloudevent.to_json(event).encode())
        await client.close()

    asyncio.run(send())


def facts_on(url: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        client = await nats.connect(url)
        jetstream = client.jetstream()
        count = (await jetstream.stream_info(STREAM)).state.messages
        subscription = await jetstream.subscribe("millrace.>", ordered_consumer=True)
        messages = [await subscription.next_msg(timeout=5) for _ in range(count)]
        await client.close()
        return [json.loads(message.data) for message in messages]

    return asyncio.run(read())


def checkpoints(service: RunningService, name: str) -> list[pb.Checkpoint]:
    request = pb.ListCheckpointsRequest(parent=name)
    return list(service.call("ListCheckpoints", request).checkpoints)


def test_killed_amid_training_it_goes_on_and_the_job_succeeds_once_its_model_serves(
    service: RunningService, nats_server: NatsServer, neighbours: Neighbours, tmp_path: Path
) -> None:
    name = create(service, epochs=EPOCHS)
    wait_until(lambda: len(checkpoints(service, name)) >= 2, 240, "two checkpoints")
    assert service.job(name).state == lifecycle.WORK_STATE_RUNNING
    trainers = service.children()
    service.kill()
    _, alive = psutil.wait_procs(trainers, timeout=10)
    assert trainers
    assert alive == []  # a killed service leaves no job behind
    before = {path.name for path in (tmp_path / "data/tuning").glob("*/*/checkpoint-*")}
    assert len(before) < EPOCHS
    service.start()
    wait_until(lambda: service.job(name).progress.phase == "rollout", 240, "the training's end")

    made = checkpoints(service, name)
    assert [checkpoint.step for checkpoint in reversed(made)] == list(
        range(15, 15 * EPOCHS + 1, 15)
    )
    assert len({checkpoint.content.digest for checkpoint in made}) == EPOCHS
    final = made[0]
    assert final.final
    assert final.train_loss < made[-1].train_loss
    (upload,) = neighbours.data.uploads
    assert upload[1].count(b"\n") == 15 * EPOCHS + 1  # a line a step, none lost, none twice

    message = registry_events.RolloutSettled(checkpoint=final.name, model=final.model)
    fact, trace = fact_of(type(message)), service.job(name).traceparent
    publish(nats_server.url, Event("fact-1", fact, "acme", message, datetime.now(UTC), trace))
    wait_until(lambda: service.job(name).state == lifecycle.WORK_STATE_SUCCEEDED, 20, "the end")
    job = service.job(name)
    assert job.result_file == "tenants/acme/files/file-result-1"
    assert job.trained_tokens > 0
    wait_until(lambda: _ends(nats_server.url) == 1, 10, "job.succeeded")
    said = [event["subject"].split(".", 3)[3] for event in facts_on(nats_server.url)]
    assert said.count("job.started") == 1
    assert said.count("checkpoint.finished") == EPOCHS
    request = pb.ListJobEventsRequest(parent=name, page_size=1000)
    told = [event.message for event in service.call("ListJobEvents", request).events]
    assert told[0] == "The job has successfully completed"
    assert told.count("Fine-tuning job started") == 1
    path = tmp_path / "data/tuning/acme" / name.rpartition("/")[2] / f"checkpoint-{15 * EPOCHS:08d}"
    assert manifest.verify(path, final.content.digest).metadata["final"]

    assert service.process is not None
    service.process.terminate()
    service.process.wait(timeout=20)
    spans = _spans(tmp_path / "traces")
    (created,) = [span for span in spans if span["name"].endswith("TunerService/CreateJob")]
    attempts = [span for span in spans if span["name"] == "tuner train"]
    trained = [span for span in spans if span["name"] == "job tuner.supervised"]
    assert {span["parentSpanId"] for span in attempts} == {created["spanId"]}
    assert trained[-1]["parentSpanId"] in {span["spanId"] for span in attempts}
    assert {
        event["traceparent"].split("-")[1]
        for event in facts_on(nats_server.url)
        if event["source"] == "/millrace/tuner"
    } == {created["traceId"]}


def _spans(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in folder.iterdir() for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def _ends(url: str) -> int:
    subjects = [event["subject"] for event in facts_on(url)]
    return sum(subject.endswith("job.succeeded") for subject in subjects)


def test_pausing_stops_the_training_and_resuming_ends_it(service: RunningService) -> None:
    name = create(service, epochs=20)
    wait_until(lambda: service.job(name).progress.phase == "train", 120, "training")
    paused = service.call("PauseJob", pb.PauseJobRequest(name=name)).job
    assert paused.state == lifecycle.WORK_STATE_PAUSED
    wait_until(lambda: not service.children(), 30, "the trainer's end")
    completed = service.job(name).progress.completed
    service.call("ResumeJob", pb.ResumeJobRequest(name=name))
    wait_until(lambda: service.job(name).progress.completed > completed, 120, "more training")
    service.call("CancelJob", pb.CancelJobRequest(name=name))
    wait_until(lambda: not service.children(), 30, "the trainer's end")
    assert service.job(name).state == lifecycle.WORK_STATE_CANCELLED
    count = 'millrace_tuning_work_count{state="CANCELLED"} 1.0'
    wait_until(lambda: count in service.get("metrics"), 10, "the metric")


def test_without_the_token_nothing_is_answered_and_it_drains(service: RunningService) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{service.grpc}") as channel:
        stub = service_pb2_grpc.TunerServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ListJobs(pb.ListJobsRequest(parent="tenants/acme"))
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert service.process is not None
    service.process.terminate()
    assert service.process.wait(timeout=20) == 0


def test_every_setting_is_explained_by_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace_tuner", "--help"], capture_output=True, check=True
    )
    text = done.stdout.decode()
    assert describe(TunerSettings) in text
    for name in TunerSettings.model_fields:
        assert f"MILLRACE_TUNER_{name.upper()}" in text
