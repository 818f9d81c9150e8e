"""How the local mesh starts tritonserver: from ``.venv-triton``, on loopback, locked down.

The layout of ``.venv-triton/tritonserver`` is made by ``deploy/local/setup.sh``.
"""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Everything but inference, health, metadata, statistics and the configuration of models, which can
# only be read, asks for the registry's key. The header is "triton-grpc-protocol-" + key in gRPC
# metadata and the bare key in HTTP:
# https://github.com/triton-inference-server/server/blob/r24.10/docs/customization_guide/inference_protocols.md#limit-endpoint-access-beta
RESTRICTED = "shared-memory,model-repository,trace,logging"
CONTROL_HEADER = "millrace-control"
GRPC_HEADER = f"triton-grpc-protocol-{CONTROL_HEADER}"

# https://github.com/triton-inference-server/server/blob/r24.10/docs/user_guide/trace.md#opentelemetry-trace-support
TRACING = (
    "mode=opentelemetry",
    "level=TIMESTAMPS",
    "rate=1",
    "opentelemetry,resource=service.name=triton",
)


@dataclass(frozen=True)
class TritonPorts:
    grpc: int
    http: int
    metrics: int


def tritonserver_command(
    environment: Path,
    repository: Path,
    ports: TritonPorts,
    control_key: str,
    exit_timeout_seconds: int = 30,
    otlp_traces_url: str | None = None,
) -> list[str]:
    """Arguments for tritonserver 2.51; it starts empty and the registry loads models.

    With ``otlp_traces_url`` (OTLP over HTTP with JSON, ending in /v1/traces) its spans join the
    trace of the ``traceparent`` in a request's metadata. After SIGTERM it may outlive its exit
    timeout while a client keeps a stream open, so whoever stops it must be ready to kill it.
    """
    root = environment / "tritonserver"
    options = {
        "id": "millrace",
        "model-repository": repository,
        "model-control-mode": "explicit",
        "backend-directory": root / "backends",
        "backend-config": f"python,shm-region-prefix-name=millrace-{ports.grpc}-",
        "grpc-address": "127.0.0.1",
        "grpc-port": ports.grpc,
        "grpc-restricted-protocol": f"{RESTRICTED}:{CONTROL_HEADER}={control_key}",
        "http-address": "127.0.0.1",
        "http-port": ports.http,
        "http-restricted-api": f"{RESTRICTED}:{CONTROL_HEADER}={control_key}",
        "metrics-address": "127.0.0.1",
        "metrics-port": ports.metrics,
        "exit-timeout-secs": exit_timeout_seconds,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    if otlp_traces_url:
        tracing = (*TRACING, f"opentelemetry,url={otlp_traces_url}")
        flags += [f"--trace-config={setting}" for setting in tracing]
    return [str(root / "bin/tritonserver"), "--disable-auto-complete-config", *flags]


def tritonserver_environment(environment: Path) -> dict[str, str]:
    """The process environment: the wheel's libraries, and the interpreter of the Python backend.

    The backend's stub embeds an isolated interpreter, which ignores PYTHONPATH. It takes the
    first ``python3`` on PATH for itself, though, and so the packages of that one's environment.
    The engine for checkpoints (``transformers_batching.py``) adds the mesh's own behind them.
    """
    return {
        **os.environ,
        "MILLRACE_ENGINE_PACKAGES": sysconfig.get_path("purelib"),
        "LD_LIBRARY_PATH": str(environment / "tritonserver/lib"),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
