"""What the trainer can be told."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ProducerSettings


class TrainerSettings(ProducerSettings):
    """``MILLRACE_TRAINER_…``"""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_TRAINER_")

    database_url: str = "sqlite:///.millrace/databases/trainer.db"
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    concurrency: int = Field(1, ge=1, description="runs at the same time")
    niceness: int = Field(
        10, ge=0, le=19, description="how far training gives way to what serves on the same CPUs"
    )
    threads: int = Field(2, ge=1, description="threads of each run, over all its processes")
    mlflow_tracking_uri: str | None = Field(
        None, description="MLflow server or store that runs are tracked in; unset: none"
    )
