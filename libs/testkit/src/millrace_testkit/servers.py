"""Real servers for tests: nats-server from its wheel, PostgreSQL from the system's package."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
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
    """nats-server with JetStream on ports of its own; it can be killed and started again.

    Its configuration and its store lie in ``directory``; the store may be told to lie elsewhere
    (on a disk of its own).
    """

    def __init__(self, directory: Path, store: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.store = store or directory / "jetstream"
        self._monitor_port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = Path(sys.executable).parent / "nats-server"
        config = self._directory / "nats.conf"
        self._directory.mkdir(parents=True, exist_ok=True)
        config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\nhttp: 127.0.0.1:{self._monitor_port}\n"
            f'jetstream {{ store_dir: "{self.store}", sync_interval: always }}\n'
        )
        self._process = subprocess.Popen(
            [binary, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: is_listening(self.port), _START_TIMEOUT_SECONDS, "nats-server")

    def kill(self) -> None:
        """SIGKILL; nothing happens when it is not running."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it writes its indexes and ends."""
        self._signal(signal.SIGTERM)

    def suspend(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def is_healthy(self) -> bool:
        """Whether ``/healthz`` answers 200: JetStream works."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._monitor_port}/healthz", timeout=5
            ):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def forget(self) -> None:
        """Lose everything stored; the server must not be running."""
        shutil.rmtree(self.store, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()


class PostgresServer:
    """A throw-away PostgreSQL cluster, run as the ``postgres`` user when tests run as root.

    ``settings`` are those of ``postgresql.conf``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = {}) -> None:
        self._folder = folder
        self._settings = settings
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
        options += "".join(f" -c {name}={value}" for name, value in self._settings.items())
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
