"""What the tuner can be told."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ProducerSettings


class TunerSettings(ProducerSettings):
    """Environment variables ``MILLRACE_TUNER_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_TUNER_")

    database_url: str = Field(
        "sqlite:///.millrace/tuner.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    registry_address: str = Field("127.0.0.1:8094", description="host:port of the registry")
    compressor_address: str = Field("127.0.0.1:8092", description="host:port of the compressor")
    concurrency: int = Field(1, ge=1, description="jobs trained at the same time")
    niceness: int = Field(
        10, ge=0, le=19, description="how far training gives way to what serves on the same CPUs"
    )
    threads: int = Field(2, ge=1, description="threads of one job")
    judge_base_url: str | None = Field(
        None,
        description="endpoint with OpenAI's API, with its /v1, that model graders ask, such as "
        "the gateway's; unset: such graders are refused",
    )
    judge_api_key: SecretStr | None = Field(None, description="key for judge_base_url")
    judge_api_key_path: Path | None = Field(
        None, description="file with that key, where judge_api_key is unset"
    )
    judge_tenant: str | None = Field(
        None,
        description="the tenant whose graders may ask with this key, which sees what its owner "
        "sees; unset: every tenant's",
    )
    grader_concurrency: int = Field(4, ge=1, description="graders run for the API at once")
    grader_seconds: float = Field(120.0, gt=0, description="a Python grader's time for one sample")
    mlflow_tracking_uri: str | None = Field(
        None, description="MLflow server or database that jobs log to; unset: none"
    )
