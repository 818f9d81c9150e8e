"""What a tuning job is told, whatever its method."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from millrace_runtime import manifest
from millrace_tuner.domain import Integration
from millrace_tuner.methods import Adapter, Hyperparameters, Method, Supervised
from millrace_tuner.prompt import Prompt
from millrace_tuner.sweep import Sweep

_DIGEST = r"^sha256:[0-9a-f]{64}$"
_NOT_IDENTITY = frozenset(
    (
        "tenant",
        "base_checkpoint_path",
        "base_evaluation_path",
        "companion_path",
        "training_file_path",
        "validation_file_path",
        "output_directory",
        "threads",
        "state_interval_seconds",
        "mlflow_tracking_uri",
        "tracked_as",
        "integration",
    )
)


class Spec(BaseModel):
    """The specification of one job; digests are ``sha256:`` + hex."""

    model_config = ConfigDict(extra="forbid")

    job: str = Field(min_length=1)
    tenant: str = Field("", description="whose job it is; its graders may ask only its judge")
    model: str = Field(min_length=1, description="id of the tuned model, `ft:demo:default:docs:x`")
    base_version: str = Field(min_length=1, description="the version that is tuned, `demo@7`")
    base_checkpoint_path: Path
    base_checkpoint_digest: str = Field(pattern=_DIGEST)
    base_evaluation_path: Path | None = Field(
        None, description="holds held-out tokens of the data that the base was trained on"
    )
    base_evaluation_digest: str | None = Field(None, pattern=_DIGEST)
    companion_path: Path | None = Field(
        None, description="checkpoint of the other model that the method needs"
    )
    companion_digest: str | None = Field(None, pattern=_DIGEST)
    training_file_path: Path
    training_file_sha256: str = Field(pattern=_DIGEST)
    validation_file_path: Path | None = None
    validation_file_sha256: str | None = Field(None, pattern=_DIGEST)
    output_directory: Path
    method: Method = Field(Supervised(), discriminator="kind")
    hyperparameters: Hyperparameters
    learning_rate: float = Field(gt=0, description="peak, after warm-up")
    adapter: Adapter = Adapter()
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(2, ge=1)
    state_interval_seconds: float = Field(
        120.0, ge=0, description="what a crash repeats at most, apart from one step"
    )
    mlflow_tracking_uri: str | None = None
    tracked_as: str | None = Field(
        None, description="what MLflow calls it; when not given, by its job"
    )
    integration: Integration | None = Field(None, description="how MLflow is to call its run")
    sweep: Sweep | None = Field(None, description="what is tried; only a sweep's own job reads it")
    prompt: Prompt | None = Field(
        None, description="makes examples of rows of columns; absent: the files hold examples"
    )

    @property
    def digest(self) -> str:
        """Identifies what is trained: everything but places, speed and observation."""
        document = self.model_dump_json(exclude=set(_NOT_IDENTITY))
        return manifest.sha256_bytes(document.encode())
