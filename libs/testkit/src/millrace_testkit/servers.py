"""Real servers for tests: nats-server from its wheel, PostgreSQL from the system's package."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_START_TIMEOUT_SECONDS = 15.0


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
    """Poll until ``condition`` holds.

    Raises:
        TimeoutError: it did not in time; ``what`` says what was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class NatsServer:
    """nats-server with JetStream on a port of its own; it can be killed and started again."""

    def __init__(self, store: Path) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = Path(sys.executable).parent / "nats-server"
        config = self._store / "nats.conf"
        self._store.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\n"
            f'jetstream {{ store_dir: "{self._store}/jetstream", sync_interval: always }}\n'
        )
        self._process = subprocess.Popen(
            [binary, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: is_listening(self.port), _START_TIMEOUT_SECONDS, "nats-server")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Lose everything stored; the server must not be running."""
        shutil.rmtree(self._store / "jetstream", ignore_errors=True)


class PostgresServer:
    """A throw-away PostgreSQL cluster, run as the ``postgres`` user when tests run as root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._binaries = find_postgres()
        self.url = f"postgresql+psycopg://millrace@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o755)
        data = self._folder / "cluster"
        if os.geteuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        self._run("initdb", "-D", data, "-U", "millrace", "-A", "trust", "--no-sync")
        options = f"-p {self._port} -h 127.0.0.1 -k {self._folder}"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._folder / "cluster", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        assert self._binaries is not None
        command = [str(self._binaries / program), *map(str, arguments)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder)


def find_postgres() -> Path | None:
    """Where PostgreSQL's server programs are, if they are installed."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in candidates if (path / "initdb").exists()), None)
