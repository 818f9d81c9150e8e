"""What every service can be told, by environment variables ``MILLRACE_<STAGE>_<FIELD>``."""

import argparse
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """Settings that all services have; each adds its own and sets its prefix.

    The addresses default to loopback: a service is reached from outside only when told so.
    """

    grpc_address: str = Field("127.0.0.1:0", description="host:port of the gRPC server")
    http_address: str = Field("127.0.0.1:0", description="host:port of /livez /readyz /metrics")
    http_listener: int | None = Field(
        None,
        ge=3,
        description="file descriptor of a socket that listens at http_address already; whoever "
        "holds it keeps connections from being lost while one process follows another",
    )
    share_ports: bool = Field(
        False, description="let the next process of this service listen at grpc_address too"
    )
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


class ProducerSettings(ServiceSettings):
    """Of services that commit content, which is signed."""

    signing_key: Path | None = Field(
        None,
        description="PEM file of the private key (ECDSA on P-256) that signs what is committed; "
        "unset: it is not signed",
    )


def from_command_line(settings_type: type[Settings], program: str, what_it_is: str) -> Settings:
    """The settings in the environment; ``--help`` explains the program and each of them."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=what_it_is,
        epilog=f"settings (environment variables):\n{describe(settings_type)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    return settings_type()  # type: ignore[call-arg]  # every field has a default


def secret(value: SecretStr | None) -> str | None:
    """A secret in the clear, where it is used and nowhere else."""
    return value.get_secret_value() if value else None


def describe(settings_type: type[ServiceSettings]) -> str:
    """One line for each setting: its variable, its default, what it is."""
    prefix = settings_type.model_config.get("env_prefix", "")
    lines = []
    for name, field in settings_type.model_fields.items():
        variable = f"{prefix}{name}".upper()
        text = f"{field.description or name.replace('_', ' ')} (default: {field.default})"
        lines.append(f"  {variable}\n      {text}")
    return "\n".join(lines)
