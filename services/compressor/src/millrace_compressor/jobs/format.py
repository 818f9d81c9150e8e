"""What a format of artifacts is: how it is made from a checkpoint, inspected, and run.

Each file beside this one that is named after a format has one class of that form;
``formats.py`` says which target is whose.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from millrace_compressor.jobs.graphs import Graphs

Tokens = NDArray[np.int64]  # (windows, positions)
Logits = NDArray[np.float32]  # (windows, positions, vocabulary)
Source = Literal["CALIBRATION_SOURCE_OWN", "CALIBRATION_SOURCE_GENERIC"]
Method = Literal[
    "WEIGHT_METHOD_ROUND_TO_NEAREST",
    "WEIGHT_METHOD_AWQ",
    "WEIGHT_METHOD_GPTQ",
    "WEIGHT_METHOD_SCALE_ESTIMATION",
]


class Calibration(BaseModel):
    """``service.proto``: Calibration."""

    model_config = ConfigDict(extra="forbid")

    source: Source = "CALIBRATION_SOURCE_OWN"
    samples: int = 64
    seed: int = 0
    compare: bool = False


class Pruning(BaseModel):
    """``service.proto``: Pruning."""

    model_config = ConfigDict(extra="forbid")

    depth: float = 0.0
    heads: float = 0.0
    width: float = 0.0
    rounds: int = 1
    recovery: bool = False


class Recipe(BaseModel):
    """``service.proto``: Recipe; None: the target's default.

    Attributes:
        layer_bits: bits by layer, where they are not all alike; set by searches, not by users.
    """

    model_config = ConfigDict(extra="forbid")

    group_size: int | None = None
    weight_method: Method | None = None
    kv_cache_int8: bool = False
    calibration: Calibration = Calibration()
    pruning: Pruning = Pruning()
    layer_bits: dict[str, Literal[4, 8]] = {}


@dataclass(frozen=True)
class Recovered:
    """What a tuning job has made of a pruned model.

    Attributes:
        checkpoint: a folder with ``model/``.
        digest: of the checkpoint.
        student: what was left by pruning, before that; it may be gone.
    """

    checkpoint: Path
    digest: str
    job: str
    student: Path


@dataclass(frozen=True)
class Conversion:
    """One checkpoint that is made into an artifact.

    Attributes:
        model: a folder, as ``save_pretrained`` leaves it.
        calibration: reads the windows that activations are observed on, chosen as the recipe says.
        llm_compressor_python: the interpreter of its environment; None: the one beside the mesh's.
        recovered: what the artifact is made of, where a pruned model has learned again.
        graphs: what was traced of checkpoints of the same shape; None: it is traced again.
    """

    model: Path
    target: str
    recipe: Recipe
    calibration: Callable[[], Tokens]
    threads: int
    llm_compressor_python: Path | None = None
    recovered: Recovered | None = None
    graphs: Graphs | None = None


class Scored(Protocol):
    """What can be compared."""

    def logits(self, ids: Tokens) -> Logits:
        """float32, (windows, positions, vocabulary), of ids (windows, positions)."""
        ...


class Answering(Protocol):
    """What can be asked."""

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        """Greedy answers of at most ``tokens`` tokens, without the one of ``stops`` at their end.

        Raises:
            JobError: TASK_NOT_ANSWERED, when a prompt does not fit the runtime's cache.
        """
        ...


class Model(Scored, Answering, Protocol):
    """A checkpoint itself."""


class Runnable(Model, Protocol):
    """An artifact that runs, through the runtime that serves it where this machine has that."""

    @property
    def dtype(self) -> str:
        """What the weights are rounded to, as ``parity.LIMITS`` names it."""
        ...

    def latency(self, prompt: NDArray[np.int64]) -> dict[str, Any]:
        """``load_seconds``, and the medians ``first_token_seconds`` and ``token_seconds``."""
        ...


class Format(Protocol):
    """One way to keep and run a model."""

    def convert(self, conversion: Conversion, output: Path) -> None:
        """Write the artifact to ``output``.

        Raises:
            JobError: CHECKPOINT_INVALID, when the model cannot be loaded.
        """
        ...

    def inspect(self, output: Path) -> Mapping[str, float]:
        """The share of the weights' elements by precision, from the artifact's own bytes.

        Raises:
            JobError: QUANTIZATION_SKIPPED, when they are not what the target says.
        """
        ...

    def size_bytes(self, output: Path) -> int:
        """Of the weights."""
        ...

    def open(self, output: Path, threads: int) -> Runnable: ...

    def exact(self, output: Path, threads: int) -> Runnable:
        """As ``open``, computed as exactly as can be: what is left are the weights' differences."""
        ...
