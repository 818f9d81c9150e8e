"""What the registry can be told."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from millrace_registry.engine import HERE
from millrace_runtime.settings import ServiceSettings

ACCEPT_UNSIGNED = "accept_unsigned"


class RegistrySettings(ServiceSettings):
    """``MILLRACE_REGISTRY_…``"""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_REGISTRY_")

    database_url: str = "sqlite:///.millrace/databases/registry.db"
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    compressor_address: str = Field("127.0.0.1:8092", description="host:port of the compressor")
    triton_grpc_address: str = Field("127.0.0.1:8084", description="host:port of Triton's gRPC")
    triton_model_repository: Path = Field(
        Path(".millrace/triton"), description="the directory that Triton loads models from"
    )
    triton_control_key: SecretStr | None = Field(
        None, description="key of Triton's restricted protocols; unset: they are open"
    )
    control_seconds: float = Field(0.5, gt=0, description="period of the look at Triton")
    drain_seconds_of_versions: float = Field(
        5.0, ge=0, description="how long a retired version stays loaded"
    )
    held_versions: int = Field(
        3, ge=0, description="versions of a model, asked for by step, that are kept loaded; 0: none"
    )
    hold_seconds: float = Field(
        120.0, gt=10, description="how long after the last request such a version stays loaded"
    )
    memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="what the versions on Triton may take of its memory; 0: 60 % of what is "
        "available on this machine when the registry starts",
    )
    trusted_keys: Path | None = Field(
        None,
        description="PEM file of the public key, or directory of those (*.pem), that datasets, "
        "checkpoints and artifacts must be signed with; unset: signatures are not asked for",
    )
    signatures: Literal["require", "accept_unsigned"] = Field(
        "require",
        description="accept_unsigned: what has no signature is served; a wrong one is refused",
    )
    engines: tuple[str, ...] = Field(
        HERE, description="engines of the endpoint; a version for another is not rolled out"
    )
    engine_threads: int = Field(0, ge=0, description="threads of each engine; 0: all cores")
