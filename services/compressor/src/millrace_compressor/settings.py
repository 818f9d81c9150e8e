"""What the compressor can be told."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from millrace_runtime.settings import ProducerSettings


class CompressorSettings(ProducerSettings):
    """``MILLRACE_COMPRESSOR_…``"""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_COMPRESSOR_")

    database_url: str = "sqlite:///.millrace/databases/compressor.db"
    registry_address: str = Field("127.0.0.1:8094", description="host:port of the registry")
    trainer_address: str = Field("127.0.0.1:8088", description="host:port of the trainer")
    tuner_address: str = Field("127.0.0.1:8090", description="host:port of the tuner")
    concurrency: int = Field(1, ge=1, description="compressions at the same time")
    threads: int = Field(2, ge=1, description="threads of each compression")
    llm_compressor_python: Path | None = Field(
        None,
        description="interpreter that has llm-compressor; without it, that of"
        " .venv-llm-compressor beside the mesh's environment",
    )
    recovery_tokens: int = Field(
        1_000_000, ge=2, description="tokens that a pruned model learns from again, at most"
    )
    evaluation_tokens: int = Field(4096, ge=2, description="held-out tokens to measure on")
