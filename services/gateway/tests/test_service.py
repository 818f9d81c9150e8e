"""``python -m millrace_gateway``, alone, as an operator starts it."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from millrace_testkit.servers import free_port, is_listening, wait_until


class Process:
    def __init__(self, folder: Path) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key_path = folder / "operator-key"
        prefix = "MILLRACE_GATEWAY_"
        environment = {
            **os.environ,
            f"{prefix}HTTP_ADDRESS": f"127.0.0.1:{self.port}",
            f"{prefix}GRPC_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            f"{prefix}DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            f"{prefix}OPERATOR_KEY_PATH": str(self.key_path),
            f"{prefix}NATS_URL": f"nats://127.0.0.1:{free_port()}",
            f"{prefix}DRAIN_SECONDS": "2",
            "MILLRACE_TRACE_DIRECTORY": str(folder / "traces"),
        }
        for stage in ("DATA", "TRAINER", "TUNER", "COMPRESSOR", "REGISTRY"):
            environment[f"{prefix}{stage}_ADDRESS"] = f"127.0.0.1:{free_port()}"
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "millrace_gateway"],
                env=environment,
                stderr=log,
            )
        wait_until(lambda: is_listening(self.port), 20, "the gateway")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.process.poll() is None:
        process.process.kill()
        process.process.wait()


def test_alone(gateway: Process, tmp_path: Path) -> None:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        assert client.get("/livez").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ok", "pid": gateway.process.pid}
        assert "millrace_http_server_requests_total" in client.get("/metrics").text
        assert client.get("/v1/models").status_code == 401
        secret = gateway.key_path.read_text().strip()
        assert stat.S_IMODE(gateway.key_path.stat().st_mode) == 0o600
        client.headers["authorization"] = f"Bearer {secret}"
        assert client.get("/v1/models").json()["data"] == []
        # What cannot be reached is said so, after a few tries, and is nobody's 500.
        assert client.get("/v1/datasets").status_code == 503
        body = {"model": "demo", "prompt": "x"}
        assert client.post("/v1/completions", json=body).status_code == 503
        assert client.get("/v1/events").status_code == 503
    assert gateway.end() == 0
    log = gateway.log.read_text()
    assert "Traceback" not in log, log
    assert secret not in log
    spans = "".join(path.read_text() for path in (tmp_path / "traces").glob("*.jsonl"))
    assert '"name": "GET /v1/models"' in spans


def test_the_operator_key_survives_a_restart(gateway: Process, tmp_path: Path) -> None:
    secret = gateway.key_path.read_text()
    assert gateway.end() == 0
    again = Process(tmp_path)
    try:
        assert again.key_path.read_text() == secret
        headers = {"authorization": f"Bearer {secret.strip()}"}
        assert httpx.get(f"{again.url}/v1/models", headers=headers).status_code == 200
    finally:
        assert again.end() == 0


def test_help() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "millrace_gateway", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Millrace's public API" in told
    assert "MILLRACE_GATEWAY_HTTP_ADDRESS" in told
    assert "127.0.0.1:8080" in told
