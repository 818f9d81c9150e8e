"""The service as a process: started alone, killed, drained; on a real NATS server."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import nats
import psutil
import pytest
from data_builders import prose, write_text_jsonl
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nats.js.errors import NotFoundError

from millrace.data.v1 import service_pb2 as pb
from millrace.data.v1 import service_pb2_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.topology import STREAM
from millrace_data.settings import DataSettings
from millrace_runtime.settings import describe
from millrace_testkit.servers import NatsServer, free_port, wait_until
from tests.chaos.disks import DisksNotAllowed, fill, small_disk

TOKEN = "an-internal-secret"


class RunningService:
    """``python -m millrace_data`` with its state in a folder."""

    def __init__(self, folder: Path, nats_url: str) -> None:
        self.http, self.grpc = free_port(), free_port()
        settings = {
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc}",
            "HTTP_ADDRESS": f"127.0.0.1:{self.http}",
            "DATABASE_URL": f"sqlite:///{folder}/data.db",
            "NATS_URL": nats_url,
            "DATA_ROOT": str(folder / "data"),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "INTERNAL_TOKEN": TOKEN,
            "LEASE_SECONDS": "2",
            "RECONCILE_SECONDS": "0.5",
        }
        self._environment = {f"MILLRACE_DATA_{name}": value for name, value in settings.items()}
        self._log = (folder / "service.log").open("ab")
        self._channel: grpc.Channel | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "millrace_data"],
            env={**os.environ, **self._environment},
            stderr=self._log,
        )
        wait_until(lambda: self.probe("readyz") == 200, 20, "the data service")

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
            self._channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")
        return self._channel

    def call(self, method: str, request: Any) -> Any:
        stub = service_pb2_grpc.DataServiceStub(self.channel())
        metadata = [("x-millrace-token", TOKEN)]
        return getattr(stub, method)(request, metadata=metadata, wait_for_ready=True, timeout=20)

    def jobs(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=20)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


@pytest.fixture
def service(tmp_path: Path, nats_server: NatsServer) -> Iterator[RunningService]:
    running = RunningService(tmp_path, nats_server.url)
    running.start()
    yield running
    running.close()


def upload_texts(service: RunningService, tmp_path: Path, count: int) -> str:
    path = write_text_jsonl(tmp_path / "texts.jsonl", [prose(seed) for seed in range(count)])
    header = pb.UploadFileHeader(
        parent="tenants/acme", filename="texts.jsonl", purpose=pb.FILE_PURPOSE_USER_DATA
    )
    content = path.read_bytes()
    messages = [pb.UploadFileRequest(header=header)]
    for start in range(0, len(content), 1 << 20):
        messages.append(pb.UploadFileRequest(chunk=content[start : start + (1 << 20)]))
    return str(service.call("UploadFile", iter(messages)).file.name)


def create(service: RunningService, source: pb.DatasetSource, **recipe: Any) -> str:
    request = pb.CreateDatasetRequest(
        parent="tenants/acme", source=source, recipe=pb.DatasetRecipe(**recipe)
    )
    return str(service.call("CreateDataset", request).dataset.name)


def state_of(service: RunningService, name: str) -> pb.Dataset:
    return service.call("GetDataset", pb.GetDatasetRequest(name=name)).dataset


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


def test_alone_it_builds_a_dataset_and_says_so(
    service: RunningService, nats_server: NatsServer, tmp_path: Path
) -> None:
    health = health_pb2_grpc.HealthStub(service.channel())
    answer = health.Check(health_pb2.HealthCheckRequest(service="millrace.data.v1.DataService"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    file = upload_texts(service, tmp_path, 80)
    source = pb.DatasetSource(files=pb.FileSet(names=[file]))
    name = create(service, source, vocabulary_size=400, heldout_fraction=0.1)
    wait_until(
        lambda: state_of(service, name).state == lifecycle_pb2.WORK_STATE_SUCCEEDED, 20, name
    )
    dataset = state_of(service, name)
    wait_until(lambda: len(facts_on(nats_server.url)) == 2, 10, "both facts")
    uploaded, ready = facts_on(nats_server.url)
    assert uploaded["data"]["file"] == file
    assert ready["data"]["dataset"] == name
    assert ready["data"]["content"]["digest"] == dataset.content.digest
    assert dataset.progress.phase == "commit"
    count = 'millrace_dataset_work_count{state="SUCCEEDED"} 1.0'
    wait_until(lambda: count in service.metrics(), 10, "the metric")
    assert service.probe("livez") == 200
    assert service.stop() == 0


def test_without_nats_it_works_and_catches_up(tmp_path: Path, nats_server: NatsServer) -> None:
    nats_server.kill()
    service = RunningService(tmp_path, nats_server.url)
    try:
        service.start()
        file = upload_texts(service, tmp_path, 1)
        nats_server.start()
        wait_until(lambda: "millrace_nats_connected 1.0" in service.metrics(), 15, "NATS")
        wait_until(lambda: bool(facts_on(nats_server.url)), 15, "the fact")
        assert facts_on(nats_server.url)[0]["data"]["file"] == file
    finally:
        service.close()


def test_without_the_token_nothing_is_answered(service: RunningService) -> None:
    stub = service_pb2_grpc.DataServiceStub(service.channel())
    with pytest.raises(grpc.RpcError) as raised:
        stub.ListDatasets(pb.ListDatasetsRequest(parent="tenants/acme"))
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_in_the_middle_of_a_build_it_finishes_after_a_restart(
    service: RunningService, number: signal.Signals
) -> None:
    source = pb.DatasetSource(python_standard_library=pb.PythonStandardLibrary())
    name = create(service, source, vocabulary_size=300, maximum_bytes=3_000_000)
    wait_until(lambda: state_of(service, name).progress.phase != "", 20, "the build's start")
    jobs = service.jobs()
    assert jobs
    assert service.process is not None
    service.process.send_signal(number)
    service.process.wait(timeout=20)
    _, alive = psutil.wait_procs(jobs, timeout=10)
    assert alive == []
    service.start()
    wait_until(
        lambda: state_of(service, name).state == lifecycle_pb2.WORK_STATE_SUCCEEDED, 30, name
    )


def test_every_setting_is_explained_by_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millrace_data", "--help"], capture_output=True, check=True
    )
    text = done.stdout.decode()
    assert describe(DataSettings) in text
    for name in DataSettings.model_fields:
        assert f"MILLRACE_DATA_{name.upper()}" in text


def datasets_told_of(nats_url: str) -> list[str]:
    return [fact["data"].get("dataset", "") for fact in facts_on(nats_url)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    try:
        with small_disk(tmp_path / "disk", 8 << 20) as folder:
            yield folder
    except DisksNotAllowed as error:
        pytest.skip(str(error))


def test_a_full_disk_is_said_and_got_over(
    disk: Path, tmp_path: Path, nats_server: NatsServer
) -> None:
    service = RunningService(disk, nats_server.url)
    try:
        service.start()
        file = upload_texts(service, tmp_path, 80)
        source = pb.DatasetSource(files=pb.FileSet(names=[file]))
        ballast = fill(disk)
        with pytest.raises(grpc.RpcError) as upload_refused:
            upload_texts(service, tmp_path, 81)
        assert upload_refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as create_refused:
            for _ in range(1000):  # the database's log has some room of its own left
                create(service, source, vocabulary_size=300)
        assert create_refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "disk is full" in create_refused.value.details()
        assert service.probe("livez") == 200
        ballast.unlink()
        name = create(service, source, vocabulary_size=400, heldout_fraction=0.1)
        succeeded = lifecycle_pb2.WORK_STATE_SUCCEEDED
        wait_until(lambda: state_of(service, name).state == succeeded, 60, name)
        wait_until(lambda: name in datasets_told_of(nats_server.url), 20, "the relay goes on")
        assert list((disk / "data" / "files").glob(".tmp-*")) == []
    finally:
        service.close()
