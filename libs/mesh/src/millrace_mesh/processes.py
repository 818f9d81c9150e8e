"""What runs in a mesh, how each is started, and when each is ready."""

import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from millrace_mesh import nats, probes, triton
from millrace_mesh.layout import HOST, SERVICES, Layout, LayoutError
from millrace_mesh.probes import Probe

TRITON_ENVIRONMENT_VARIABLE = "MILLRACE_TRITON_ENVIRONMENT"
# The gateway goes first when the mesh stops, and what the services stand on goes last.
_GROUND, _SERVICES, _EDGE = 0, 1, 2
_DRAIN_SECONDS = 10.0
_STOP_SECONDS = _DRAIN_SECONDS + 5.0
_TRITON_EXIT_SECONDS = 8
_BACKLOG = 2048  # as uvicorn's own
# A disk that was full leaves JetStream unhealthy until the server is restarted.
_NATS_UNHEALTHY_SECONDS = 10.0


@dataclass(frozen=True)
class ProcessSpec:
    """One process of the mesh.

    Attributes:
        environment: the whole environment of the process.
        address: where it answers, for people.
        is_ready: its readiness.
        listener: a listening socket that every life of the process inherits, so that no
            connection is lost while one follows another; ``None``: it makes its own, and
            cannot be restarted without an interruption.
        tier: the mesh stops from the highest tier to the lowest.
        stop_seconds: from SIGTERM until it is killed.
        unhealthy_seconds: restart it when its readiness fails for so long, after it was ready
            once; ``None``: never, it is trusted to recover or to end.
        confirm: asked once when it is ready, for a sentence to log and keep.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    address: str
    is_ready: Probe
    listener: socket.socket | None = field(default=None, compare=False)
    tier: int = _SERVICES
    stop_seconds: float = _STOP_SECONDS
    unhealthy_seconds: float | None = None
    confirm: Callable[[], Awaitable[str]] | None = field(default=None, compare=False)


def triton_environment() -> Path:
    """The environment that holds tritonserver: beside this one, unless told otherwise.

    Raises:
        LayoutError: there is no tritonserver in it.
    """
    told = os.environ.get(TRITON_ENVIRONMENT_VARIABLE)
    path = Path(told) if told else Path(sys.prefix).with_name(".venv-triton")
    if not (path / "tritonserver" / "bin" / "tritonserver").exists():
        raise LayoutError(
            f"no tritonserver in {path}: run deploy/local/setup.sh, or say where it is with "
            f"{TRITON_ENVIRONMENT_VARIABLE}"
        )
    return path


def mesh(
    layout: Layout, secrets: Mapping[str, str], listeners: Mapping[str, socket.socket]
) -> list[ProcessSpec]:
    """Every process, in the order in which they are listed and started.

    ``listeners`` holds a socket for each service, which listens at its HTTP address.
    """
    return [
        _nats(layout),
        _triton(layout, secrets["triton-control-key"]),
        *(_service(layout, stage, secrets, listeners[stage]) for stage in SERVICES),
    ]


def listen(layout: Layout) -> dict[str, socket.socket]:
    """Listening sockets by service; connections queue there until somebody accepts them."""
    return {
        stage: socket.create_server((HOST, layout.ports[f"{stage}.http"]), backlog=_BACKLOG)
        for stage in SERVICES
    }


def _nats(layout: Layout) -> ProcessSpec:
    monitor = layout.url("nats.monitor")

    async def confirm() -> str:
        return nats.durability(await probes.get_json(f"{monitor}/jsz?config=true"))

    return ProcessSpec(
        name="nats",
        command=[nats.binary(), "--config", str(nats.write_configuration(layout))],
        environment=os.environ,
        address=layout.address("nats.client"),
        is_ready=probes.http(f"{monitor}/healthz"),
        tier=_GROUND,
        unhealthy_seconds=_NATS_UNHEALTHY_SECONDS,
        confirm=confirm,
    )


def _triton(layout: Layout, control_key: str) -> ProcessSpec:
    environment = triton_environment()
    ports = triton.TritonPorts(
        grpc=layout.ports["triton.grpc"],
        http=layout.ports["triton.http"],
        metrics=layout.ports["triton.metrics"],
    )
    command = triton.tritonserver_command(
        environment, layout.home.triton_models, ports, control_key, _TRITON_EXIT_SECONDS
    )
    address = layout.address("triton.grpc")
    return ProcessSpec(
        name="triton",
        command=command,
        environment=triton.tritonserver_environment(environment),
        address=address,
        is_ready=probes.triton(address),
        tier=_GROUND,
    )


def _service(
    layout: Layout, stage: str, secrets: Mapping[str, str], listener: socket.socket
) -> ProcessSpec:
    environment = layout.service_environment(stage, secrets, os.environ)
    environment["PYTHONUNBUFFERED"] = "1"
    prefix = f"MILLRACE_{stage.upper()}_"
    environment.setdefault(f"{prefix}DRAIN_SECONDS", str(_DRAIN_SECONDS))
    environment[f"{prefix}HTTP_LISTENER"] = str(listener.fileno())
    environment[f"{prefix}SHARE_PORTS"] = "true"
    return ProcessSpec(
        name=stage,
        command=[sys.executable, "-m", f"millrace_{stage}"],
        environment=environment,
        address=layout.address(f"{stage}.grpc"),
        is_ready=probes.http(f"{layout.url(f'{stage}.http')}/readyz"),
        listener=listener,
        tier=_EDGE if stage == "gateway" else _SERVICES,
    )
