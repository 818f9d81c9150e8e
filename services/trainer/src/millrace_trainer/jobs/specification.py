"""What a training job is told."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Architecture(BaseModel):
    """Shape of a decoder-only transformer (Qwen3, as transformers has it)."""

    model_config = ConfigDict(extra="forbid")

    hidden_size: int = Field(default=256, ge=8)
    layers: int = Field(default=6, ge=1)
    attention_heads: int = Field(default=4, ge=1)
    key_value_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=704, ge=8)
    context_length: int = Field(default=256, ge=8)

    @model_validator(mode="after")
    def heads_fit(self) -> "Architecture":
        if self.hidden_size % self.attention_heads or self.head_size % 2:
            raise ValueError("hidden_size must be attention_heads times an even number")
        if self.attention_heads % self.key_value_heads:
            raise ValueError("attention_heads must be a multiple of key_value_heads")
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention_heads


class Hyperparameters(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    minimum_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    total_steps: int = Field(default=300, ge=1)
    warmup_steps: int = Field(default=20, ge=0)
    batch_sequences: int = Field(default=16, ge=1)
    micro_batch_sequences: int = Field(default=8, ge=1)
    weight_decay: float = Field(default=0.1, ge=0, le=1)
    gradient_clip_norm: float = Field(default=1.0, gt=0)
    checkpoint_every_steps: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)
    processes: int = Field(default=1, ge=1, le=64)

    @model_validator(mode="after")
    def batches_divide(self) -> "Hyperparameters":
        if self.batch_sequences % (self.micro_batch_sequences * self.processes):
            raise ValueError(
                "batch_sequences must be a multiple of micro_batch_sequences times processes"
            )
        return self

    @property
    def accumulation_steps(self) -> int:
        return self.batch_sequences // (self.micro_batch_sequences * self.processes)


class Spec(BaseModel):
    """One training run.

    Attributes:
        dataset_path: a committed dataset: ``tokenizer/``, ``train-*.npy``, ``heldout-*.npy``.
        output_directory: the run's own; checkpoints are committed as ``step-00000100`` in it.
        initial_checkpoint_path: a committed checkpoint whose weights are begun with; None begins
            with random ones.
        zero_stage: what the ranks share out: 0 nothing, 1 the optimizer's state, 2 gradients too
            (ZeRO, arXiv:1910.02054).
        evaluation_sequences: held-out sequences that are measured at each checkpoint.
        report_seconds: progress is told at most this often.
        threads: over all processes.
        compile: let torch.compile rewrite the model; it needs a C++ compiler on the CPU.
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str
    tenant: str = ""
    model: str
    dataset_path: Path
    dataset_digest: str
    output_directory: Path
    initial_checkpoint_path: Path | None = None
    initial_checkpoint_digest: str | None = None
    architecture: Architecture = Architecture()
    hyperparameters: Hyperparameters = Hyperparameters()
    zero_stage: Literal[0, 1, 2] = 2
    evaluation_sequences: int = Field(default=16, ge=1)
    report_seconds: float = Field(default=0.5, ge=0)
    threads: int = Field(default=2, ge=1)
    compile: bool = False
    mlflow_tracking_uri: str | None = None

    @model_validator(mode="after")
    def initial_checkpoint_is_named_whole(self) -> "Spec":
        if (self.initial_checkpoint_path is None) != (self.initial_checkpoint_digest is None):
            raise ValueError("initial_checkpoint_path and initial_checkpoint_digest go together")
        return self

    @property
    def tokens_per_step(self) -> int:
        return self.hyperparameters.batch_sequences * self.architecture.context_length

    def identity(self) -> dict[str, Any]:
        """What the trained weights follow from; where things lie and how fast is no part of it."""
        where = {"dataset_path", "output_directory", "initial_checkpoint_path"}
        how = {"tenant", "report_seconds", "threads", "compile", "mlflow_tracking_uri"}
        return self.model_dump(mode="json", exclude=where | how)
