"""What the demo asks for, and how much of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """Sizes of everything.

    Attributes:
        model: id that the pre-trained model is served under.
        recipe, architecture, hyperparameters: as ``/v1/datasets`` and ``/v1/training/runs``
            take them; what is left out is the services' default.
        examples: conversations to tune on.
        requests_per_second: of the traffic while the model trains.
    """

    model: str = "demo"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 400
    epochs: int = 2
    suffix: str = "docs"
    answer_tokens: int = 64
    requests_per_second: float = 8.0

    @property
    def digest(self) -> str:
        """Short name of these very sizes: what was made for them is found again by it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


# About six minutes on two cores, a little less than half of it training.
FULL = Plan(
    recipe={"vocabulary_size": 4096},
    hyperparameters={
        "total_steps": 240,
        "checkpoint_every_steps": 60,
        "warmup_steps": 20,
        "seed": 7,
    },
)
# The same road in about a minute and a half, for a model that has learned next to nothing.
QUICK = Plan(
    model="demo-quick",
    recipe={"vocabulary_size": 1024, "maximum_bytes": 1_200_000},
    architecture={
        "hidden_size": 64,
        "layers": 2,
        "attention_heads": 4,
        "key_value_heads": 2,
        "intermediate_size": 128,
        "context_length": 256,
    },
    hyperparameters={
        "total_steps": 60,
        "checkpoint_every_steps": 20,
        "warmup_steps": 4,
        "batch_sequences": 8,
        "micro_batch_sequences": 8,
        "seed": 7,
    },
    examples=40,
    epochs=1,
    answer_tokens=16,
)
