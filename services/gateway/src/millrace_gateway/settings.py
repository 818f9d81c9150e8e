"""What the gateway can be told, by environment variables ``MILLRACE_GATEWAY_<FIELD>``."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_GATEWAY_")

    grpc_address: str = Field("127.0.0.1:9090", description="host:port of the public gRPC API")
    http_address: str = Field(
        "127.0.0.1:8080", description="host:port of the REST API, /livez, /readyz and /metrics"
    )
    database_url: str = Field(
        "sqlite:///.millrace/gateway.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    trainer_address: str = Field("127.0.0.1:8088", description="host:port of the trainer")
    tuner_address: str = Field("127.0.0.1:8090", description="host:port of the tuner")
    compressor_address: str = Field("127.0.0.1:8092", description="host:port of the compressor")
    registry_address: str = Field("127.0.0.1:8094", description="host:port of the registry")
    operator_key_path: Path = Field(
        Path(".millrace/secrets/operator-key"),
        description="where the first operator key is written (mode 0600) at first start",
    )
    operator_tenant: str = Field(
        "default",
        pattern=r"^[a-z][a-z0-9-]{0,62}$",
        description="tenant that the first operator key belongs to",
    )
    maximum_body_bytes: int = Field(
        4 * 2**20, gt=0, description="largest request body, other than a file's"
    )
    maximum_file_bytes: int = Field(512 * 2**20, gt=0, description="largest uploaded file")
    maximum_generations: int = Field(
        256, gt=0, description="completions in progress from which on more are refused (429)"
    )
    generation_seconds: float = Field(
        600.0, gt=0, description="longest that one completion may take"
    )
    engine_silence_seconds: float = Field(
        30.0, gt=0, description="silence of an engine after which it is given up for dead"
    )
    event_heartbeat_seconds: float = Field(
        15.0, gt=0, description="silence on an event stream after which a comment is sent"
    )
