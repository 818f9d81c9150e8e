"""What the tuner can be told."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ServiceSettings


class TunerSettings(ServiceSettings):
    """Environment variables ``MILLRACE_TUNER_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_TUNER_")

    database_url: str = Field(
        "sqlite:///.millrace/tuner.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    registry_address: str = Field("127.0.0.1:8094", description="host:port of the registry")
    compressor_address: str = Field("127.0.0.1:8092", description="host:port of the compressor")
    concurrency: int = Field(1, ge=1, description="jobs trained at the same time")
    threads: int = Field(2, ge=1, description="threads of one job")
    mlflow_tracking_uri: str | None = Field(
        None, description="MLflow server or database that jobs log to; unset: none"
    )
