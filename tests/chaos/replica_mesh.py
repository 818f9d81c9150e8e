"""Two replicas of every stateful service, on one PostgreSQL, one nats-server and one Triton."""

import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
from sqlalchemy import text

from millrace.data.v1 import service_pb2 as data
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.trainer.v1 import service_pb2 as trainer
from millrace.trainer.v1 import service_pb2_grpc as trainer_grpc
from millrace.tuner.v1 import service_pb2 as tuner
from millrace.tuner.v1 import service_pb2_grpc as tuner_grpc
from millrace_mesh.layout import CALLS
from millrace_runtime.channel import open_channel
from millrace_runtime.database import open_database
from millrace_testkit.servers import NatsServer, free_port, wait_until
from tests.chaos.fencing_stages import STEPS, TENANT
from tests.chaos.fencing_worker import url_of
from tests.chaos.played_triton import PlayedTriton

STAGES = ("data", "trainer", "tuner", "compressor", "registry")
REPLICAS = 2
LEASE_SECONDS = 1.5
IDLE_MILLISECONDS = 1000
_PARENT = f"tenants/{TENANT}"
_ROOT = Path(__file__).parents[2]
_START_SECONDS = 60.0
_CALL_SECONDS = 4.0
_EXAMPLE = (
    '{"messages": [{"role": "user", "content": "What is %d and one?"},'
    ' {"role": "assistant", "content": "One more than before."}]}\n'
)

T = TypeVar("T")


class Replica:
    """One process of one service."""

    def __init__(self, stage: str, number: int, settings: Mapping[str, str], log: Path) -> None:
        self.stage = stage
        self.name = f"{stage}-{number}"
        self.grpc_port, self._http_port = free_port(), free_port()
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._seed = number

    def start(self, addresses: Mapping[str, str]) -> None:
        prefix = f"MILLRACE_{self.stage.upper()}_"
        own = {
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            "HTTP_ADDRESS": f"127.0.0.1:{self._http_port}",
            **{f"{other.upper()}_ADDRESS": addresses[other] for other in CALLS[self.stage]},
            **self._settings,
        }
        environment = {f"{prefix}{key}": value for key, value in own.items()}
        environment["MILLRACE_TRACE_DIRECTORY"] = str(self._log.parent / "traces")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.replica_service", self.stage, str(self._seed)],
                env={**os.environ, **environment},
                stderr=log,
                stdout=log,
                cwd=_ROOT,
            )

    @property
    def is_ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._http_port}/readyz"
            with urllib.request.urlopen(url, timeout=2):
                return True
        except OSError:
            return False

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(30)


class ReplicaMesh:
    """Everything but PostgreSQL, which is at ``url``."""

    def __init__(self, url: str, directory: Path, chance: random.Random) -> None:
        self._directory = directory
        self.administration = open_database(f"{url}?application_name=administration")
        self.nats = NatsServer(directory / "nats")
        (directory / "triton").mkdir()
        self.triton = PlayedTriton(directory / "triton")
        self.replicas = [
            Replica(stage, number, self._settings(url, stage, number), directory / "services.log")
            for stage in STAGES
            for number in range(REPLICAS)
        ]
        self._addresses = {stage: self._address(stage) for stage in STAGES}
        self._channels = {stage: open_channel(self._addresses[stage], None) for stage in STAGES}
        self._chance = chance

    def start(self) -> None:
        """Both replicas of a stage at once: they migrate the same database."""
        with self.administration.transaction() as connection:
            for stage in STAGES:
                connection.exec_driver_sql(f"CREATE SCHEMA {stage}")
        self.nats.start()
        for replica in self.replicas:
            replica.start(self._addresses)
        for replica in self.replicas:
            wait_until(lambda r=replica: r.is_ready, _START_SECONDS, f"{replica.name} is ready")

    def start_again(self, replica: Replica) -> None:
        replica.start(self._addresses)

    def stop(self) -> None:
        for channel in self._channels.values():
            channel.close()
        for replica in self.replicas:
            replica.end()
        self.triton.stop()
        self.nats.kill()
        self.administration.close()

    def rows(self, query: str, **values: Any) -> list[Any]:
        with self.administration.transaction() as connection:
            return list(connection.execute(text(query), values))

    def create_dataset(self, key: str) -> str:
        source = data.DatasetSource(python_standard_library=data.PythonStandardLibrary())
        request = data.CreateDatasetRequest(parent=_PARENT, source=source, request_id=key)
        stub = data_grpc.DataServiceStub(self._channels["data"])
        return str(
            _patiently(lambda: stub.CreateDataset(request, timeout=_CALL_SECONDS)).dataset.name
        )

    def create_run(self, key: str, model: str, dataset: str) -> str:
        request = trainer.CreateRunRequest(
            parent=_PARENT,
            model=model,
            dataset=dataset,
            hyperparameters=trainer.Hyperparameters(total_steps=STEPS[-1]),
            request_id=key,
        )
        stub = trainer_grpc.TrainerServiceStub(self._channels["trainer"])
        return str(_patiently(lambda: stub.CreateRun(request, timeout=_CALL_SECONDS)).run.name)

    def upload(self, key: str) -> str:
        """A file to tune with."""
        content = "".join(_EXAMPLE % number for number in range(12)).encode() + key.encode()[:0]
        header = data.UploadFileHeader(
            parent=_PARENT,
            filename=f"{key}.jsonl",
            purpose=data.FILE_PURPOSE_FINE_TUNE,
            request_id=key,
        )
        parts = (data.UploadFileRequest(header=header), data.UploadFileRequest(chunk=content))
        stub = data_grpc.DataServiceStub(self._channels["data"])
        upload = lambda: stub.UploadFile(iter(parts), timeout=_CALL_SECONDS)  # noqa: E731
        return str(_patiently(upload).file.name)

    def create_job(self, key: str, model: str, file: str) -> str:
        request = tuner.CreateJobRequest(
            parent=_PARENT, base_model=model, training_file=file, suffix="sums", request_id=key
        )
        stub = tuner_grpc.TunerServiceStub(self._channels["tuner"])
        return str(_patiently(lambda: stub.CreateJob(request, timeout=_CALL_SECONDS)).job.name)

    def _address(self, stage: str) -> str:
        """Both replicas, as a name that resolves to several addresses would give them."""
        ports = [replica.grpc_port for replica in self.replicas if replica.stage == stage]
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)

    def _settings(self, url: str, stage: str, number: int) -> dict[str, str]:
        settings = {
            "DATABASE_URL": url_of(url, stage, f"{stage}-{number}", IDLE_MILLISECONDS).replace(
                "%3D", "="
            ),
            "NATS_URL": self.nats.url,
            "DATA_ROOT": str(self._directory / "data"),
            "SCRATCH_DIRECTORY": str(self._directory / "scratch" / f"{stage}-{number}"),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "RECONCILE_SECONDS": "1",
            "DRAIN_SECONDS": "1",
        }
        if stage == "registry":
            settings |= {
                "TRITON_GRPC_ADDRESS": self.triton.address,
                "TRITON_MODEL_REPOSITORY": str(self._directory / "triton"),
                "TRITON_CONTROL_KEY": f"{stage}-{number}",
                "CONTROL_SECONDS": "0.3",
                "DRAIN_SECONDS_OF_VERSIONS": "1",
            }
        return settings


def _patiently(call: Callable[[], T]) -> T:
    """Ask until there is an answer: the request id makes that once."""
    made: list[T] = []

    def answered() -> bool:
        try:
            made.append(call())
        except grpc.RpcError as error:
            passing = (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,
                grpc.StatusCode.UNKNOWN,
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.ABORTED,
            )
            if error.code() not in passing:
                raise
        return bool(made)

    wait_until(answered, 60, "an answer")
    return made[0]
