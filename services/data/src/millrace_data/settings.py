"""What the data service can be told."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ProducerSettings


class DataSettings(ProducerSettings):
    """Environment variables ``MILLRACE_DATA_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_DATA_")

    database_url: str = Field(
        "sqlite:///.millrace/data.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    maximum_file_bytes: int = Field(
        512 * 1024 * 1024, ge=1, description="largest upload that is accepted"
    )
    concurrency: int = Field(1, ge=1, description="datasets built at the same time")
    threads: int = Field(2, ge=1, description="threads of one build")
