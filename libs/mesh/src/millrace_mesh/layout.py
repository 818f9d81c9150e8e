"""Where everything of one mesh is: every port, path and variable, from home and base port.

Nothing here touches the machine but ``require_free_ports``.
"""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from millrace_client.home import Home

BASE_PORT_VARIABLE = "MILLRACE_BASE_PORT"
DEFAULT_BASE_PORT = 8080
HOST = "127.0.0.1"

# Who signs what it commits, with the key of the mesh.
SIGNERS = ("data", "trainer", "tuner", "compressor")
SERVICES = ("data", "trainer", "tuner", "compressor", "registry", "gateway")
# Whose gRPC address each service is told, as ``MILLRACE_<STAGE>_<OTHER>_ADDRESS``.
CALLS: Mapping[str, Sequence[str]] = {
    "data": (),
    "trainer": ("data",),
    "tuner": ("data", "registry", "compressor"),
    "compressor": ("registry", "trainer", "tuner"),
    "registry": ("data", "compressor"),
    "gateway": ("data", "trainer", "tuner", "compressor", "registry"),
}
# Ports follow the base port in this order; only the gateway's gRPC port lies apart, so that
# the defaults are the familiar 8080 and 9090.
_CONSECUTIVE = (
    "gateway.http",
    "nats.client",
    "nats.monitor",
    "triton.http",
    "triton.grpc",
    "triton.metrics",
    *(f"{stage}.{part}" for stage in SERVICES[:-1] for part in ("grpc", "http")),
)
_GATEWAY_GRPC_OFFSET = 1010
_HIGHEST_PORT = 65535


class LayoutError(ValueError):
    """The mesh cannot be laid out like this; the message says what to set."""


@dataclass(frozen=True)
class Layout:
    """One mesh: its home and its ports."""

    home: Home
    base_port: int = DEFAULT_BASE_PORT

    def __post_init__(self) -> None:
        if not 1024 <= self.base_port <= _HIGHEST_PORT - _GATEWAY_GRPC_OFFSET:
            raise LayoutError(
                f"{BASE_PORT_VARIABLE} is {self.base_port}; it must be from 1024 to "
                f"{_HIGHEST_PORT - _GATEWAY_GRPC_OFFSET}"
            )

    @property
    def ports(self) -> dict[str, int]:
        """Port by ``process.part``."""
        ports = {part: self.base_port + offset for offset, part in enumerate(_CONSECUTIVE)}
        ports["gateway.grpc"] = self.base_port + _GATEWAY_GRPC_OFFSET
        return ports

    def address(self, part: str) -> str:
        """``host:port`` of one of ``ports``."""
        return f"{HOST}:{self.ports[part]}"

    def url(self, part: str) -> str:
        return f"http://{self.address(part)}"

    @property
    def gateway_url(self) -> str:
        return self.url("gateway.http")

    @property
    def nats_url(self) -> str:
        return f"nats://{self.address('nats.client')}"

    @property
    def signing_key(self) -> Path:
        """The private key; the public ones that are trusted lie in ``trusted_keys``."""
        return self.home.secrets / "signing-key.pem"

    @property
    def trusted_keys(self) -> Path:
        return self.home.secrets / "trusted-keys"

    def directories(self) -> list[Path]:
        """What must exist before anything starts."""
        home = self.home
        scratch = [home.scratch / stage for stage in SERVICES]
        return [
            home.secrets,
            home.logs,
            home.traces,
            home.databases,
            home.data,
            home.nats,
            home.triton_models,
            *scratch,
        ]

    def service_environment(
        self, stage: str, secrets: Mapping[str, str], environ: Mapping[str, str]
    ) -> dict[str, str]:
        """What a service is told, over ``environ``.

        Where a service keeps its things can be set from outside (a PostgreSQL URL, an S3
        root, an MLflow server); who listens where follows from the base port alone.
        """
        prefix = f"MILLRACE_{stage.upper()}_"
        defaults = {
            f"{prefix}DATABASE_URL": f"sqlite:///{self.home.databases / stage}.db",
            f"{prefix}DATA_ROOT": str(self.home.data),
            f"{prefix}SCRATCH_DIRECTORY": str(self.home.scratch / stage),
            "MILLRACE_TRACE_DIRECTORY": str(self.home.traces),
        }
        if stage in SIGNERS:
            defaults[f"{prefix}SIGNING_KEY"] = str(self.signing_key)
        if stage == "registry":
            defaults[f"{prefix}TRUSTED_KEYS"] = str(self.trusted_keys)
        if stage in ("trainer", "tuner", "gateway"):
            defaults[f"{prefix}MLFLOW_TRACKING_URI"] = f"sqlite:///{self.home.path / 'mlflow.db'}"
        # All or nothing: the key of one endpoint is not for another.
        if stage == "tuner" and "MILLRACE_TUNER_JUDGE_BASE_URL" not in environ:
            defaults |= self._judge()
        addresses = {
            f"{prefix}GRPC_ADDRESS": self.address(f"{stage}.grpc"),
            f"{prefix}HTTP_ADDRESS": self.address(f"{stage}.http"),
            f"{prefix}NATS_URL": self.nats_url,
            f"{prefix}INTERNAL_TOKEN": secrets["internal-token"],
        }
        for other in CALLS[stage]:
            addresses[f"{prefix}{other.upper()}_ADDRESS"] = self.address(f"{other}.grpc")
        return {**defaults, **environ, **addresses, **self._special(stage, prefix, secrets)}

    def _special(self, stage: str, prefix: str, secrets: Mapping[str, str]) -> dict[str, str]:
        if stage == "registry":
            return {
                f"{prefix}TRITON_GRPC_ADDRESS": self.address("triton.grpc"),
                f"{prefix}TRITON_MODEL_REPOSITORY": str(self.home.triton_models),
                f"{prefix}TRITON_CONTROL_KEY": secrets["triton-control-key"],
            }
        if stage == "gateway":
            return {f"{prefix}OPERATOR_KEY_PATH": str(self.home.operator_key_file)}
        return {}

    def _judge(self) -> dict[str, str]:
        """Whom graders that ask a model ask: this mesh itself, for its operator's tenant."""
        return {
            "MILLRACE_TUNER_JUDGE_BASE_URL": f"{self.gateway_url}/v1",
            "MILLRACE_TUNER_JUDGE_API_KEY_PATH": str(self.home.operator_key_file),
            "MILLRACE_TUNER_JUDGE_TENANT": "default",
        }


def layout_from_environ() -> Layout:
    """The layout that ``MILLRACE_HOME`` and ``MILLRACE_BASE_PORT`` ask for.

    Raises:
        LayoutError: the base port is no port.
    """
    text = os.environ.get(BASE_PORT_VARIABLE, "") or str(DEFAULT_BASE_PORT)
    if not text.isdecimal():
        raise LayoutError(f"{BASE_PORT_VARIABLE} is {text!r}; it must be a port number")
    return Layout(Home.from_environ(), int(text))


def require_free_ports(layout: Layout) -> None:
    """Check that every port can be listened on.

    Raises:
        LayoutError: naming the first that is taken, and the setting that moves all.
    """
    for part, port in layout.ports.items():
        with socket.socket() as probe:
            # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise LayoutError(
                    f"port {port} ({part}) is taken by another program. Stop it, or move the "
                    f"whole mesh: {BASE_PORT_VARIABLE}={layout.base_port + 100} millrace up"
                ) from error
