"""``python -m millrace_data`` as a process that can be killed, and a gateway before it."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from gateway_fakes import INTERNAL_TOKEN
from gateway_mesh import Mesh

from millrace_testkit.servers import free_port, wait_until

MAXIMUM_FILE_BYTES = 4_000_000


class DataProcess:
    """The real data service on SQLite, its state in a folder."""

    def __init__(self, folder: Path) -> None:
        self._http, grpc = free_port(), free_port()
        self.address = f"127.0.0.1:{grpc}"
        settings = {
            "GRPC_ADDRESS": self.address,
            "HTTP_ADDRESS": f"127.0.0.1:{self._http}",
            "DATABASE_URL": f"sqlite:///{folder}/data.db",
            "NATS_URL": f"nats://127.0.0.1:{free_port()}",
            "DATA_ROOT": str(folder / "data"),
            "SCRATCH_DIRECTORY": str(folder / "scratch"),
            "INTERNAL_TOKEN": INTERNAL_TOKEN,
            "MAXIMUM_FILE_BYTES": str(MAXIMUM_FILE_BYTES),
        }
        named = {f"MILLRACE_DATA_{name}": value for name, value in settings.items()}
        self._environment = {**os.environ, **named}
        self._log = folder / "data.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "millrace_data"], env=self._environment, stderr=log
            )
        wait_until(self._is_ready, 60, "the data service")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/readyz", timeout=2):
                return True
        except OSError:
            return False


class FilesMesh:
    """A gateway before the real data service."""

    def __init__(self, folder: Path) -> None:
        self.data = DataProcess(folder)
        self.data.start()
        self.mesh = Mesh(
            folder, data_address=self.data.address, maximum_file_bytes=MAXIMUM_FILE_BYTES
        )
        self.mesh.start()

    def close(self) -> None:
        self.mesh.stop()
        self.data.kill()
