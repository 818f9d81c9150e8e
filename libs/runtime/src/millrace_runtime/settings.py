"""What every service can be told, by environment variables ``MILLRACE_<STAGE>_<FIELD>``."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings


class ServiceSettings(BaseSettings):
    """Settings that all services have; each adds its own and sets its prefix.

    The addresses default to loopback: a service is reached from outside only when told so.
    """

    grpc_address: str = Field("127.0.0.1:0", description="host:port of the gRPC server")
    http_address: str = Field("127.0.0.1:0", description="host:port of /livez /readyz /metrics")
    database_url: str = Field(
        "sqlite:///.millrace/service.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    nats_url: str = "nats://127.0.0.1:4222"
    data_root: str = Field(
        ".millrace/data", description="where content lies: a directory, or an fsspec URL"
    )
    scratch_directory: Path = Field(
        Path(".millrace/scratch"), description="local disk for work in progress"
    )
    internal_token: SecretStr | None = Field(
        None, description="shared secret that internal calls must carry; unset: not asked for"
    )
    lease_seconds: float = Field(15.0, gt=0, description="work is taken over this long after")
    reconcile_seconds: float = Field(5.0, gt=0, description="period of the reconciler's sweep")
    drain_seconds: float = Field(10.0, ge=0, description="grace for calls in flight at SIGTERM")
    log_level: str = "INFO"
