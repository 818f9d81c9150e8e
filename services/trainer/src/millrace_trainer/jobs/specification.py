"""What a training job is told."""

from pathlib import Path
from typing import Literal

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
    """One training run. Checkpoints go to ``output_directory/step-00000100``."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
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
    threads: int = Field(default=2, ge=1)
    compile: bool = False
    mlflow_tracking_uri: str | None = None
