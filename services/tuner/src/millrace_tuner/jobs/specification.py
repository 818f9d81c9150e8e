"""What a supervised fine-tuning job is told."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from millrace_runtime import manifest

_DIGEST = r"^sha256:[0-9a-f]{64}$"
_NOT_IDENTITY = frozenset(
    (
        "base_checkpoint_path",
        "training_file_path",
        "validation_file_path",
        "output_directory",
        "threads",
        "state_interval_seconds",
        "mlflow_tracking_uri",
    )
)


class Adapter(BaseModel):
    """A low-rank adapter: weights change by ``alpha / rank * B @ A``, A of shape (rank, in)."""

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Hyperparameters(BaseModel):
    """How training goes; the service has resolved every "auto"."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: int = Field(ge=1, le=50)
    batch_size: int = Field(ge=1, le=4096, description="examples an optimizer step")
    learning_rate: float = Field(gt=0, description="peak, after warm-up")


class Spec(BaseModel):
    """The specification of one job; digests are ``sha256:`` + hex."""

    model_config = ConfigDict(extra="forbid")

    job: str = Field(min_length=1)
    model: str = Field(min_length=1, description="id of the tuned model, `ft:demo:default:docs:x`")
    base_version: str = Field(min_length=1, description="the version that is tuned, `demo@7`")
    base_checkpoint_path: Path
    base_checkpoint_digest: str = Field(pattern=_DIGEST)
    training_file_path: Path
    training_file_sha256: str = Field(pattern=_DIGEST)
    validation_file_path: Path | None = None
    validation_file_sha256: str | None = Field(None, pattern=_DIGEST)
    output_directory: Path
    hyperparameters: Hyperparameters
    adapter: Adapter | None = Field(Adapter(), description="null: full fine-tuning")
    maximum_sequence_tokens: int | None = Field(
        None, ge=2, description="longer examples are cut; null: the base model's context"
    )
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(2, ge=1)
    state_interval_seconds: float = Field(
        120.0, ge=0, description="what a crash repeats at most, apart from one step"
    )
    mlflow_tracking_uri: str | None = None

    @property
    def digest(self) -> str:
        """Identifies what is trained: everything but places, speed and observation."""
        document = self.model_dump_json(exclude=set(_NOT_IDENTITY))
        return manifest.sha256_bytes(document.encode())
