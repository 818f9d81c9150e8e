"""What a run learns: each method brings an ``Objective``, and ``training.Run`` the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray
from transformers import PreTrainedModel, Trainer

from millrace_tuner.jobs.calibration import Rows

if TYPE_CHECKING:
    from millrace_tuner.jobs.training import Run


@dataclass(frozen=True)
class Counts:
    """What there is to learn and to measure by, and what was cut from it.

    Attributes:
        training_tokens: of one epoch; None: they are written while training goes on, and the
            trainer's state counts them (``num_input_tokens_seen``).
        heldout_source: "split" (of the training file) or "validation_file".
    """

    training_examples: int
    heldout_examples: int
    training_tokens: int | None
    heldout_source: str
    truncated_examples: int = 0
    skipped_examples: int = 0


@dataclass(frozen=True)
class Criterion:
    """The measurement by which one checkpoint is better than another."""

    name: str = "valid_loss"
    higher_is_better: bool = False

    def is_better(self, found: Mapping[str, float], than: Mapping[str, float]) -> bool:
        difference = found[self.name] - than[self.name]
        return difference > 0 if self.higher_is_better else difference < 0


class Objective(Protocol):
    """What a run learns, and how what it has learned is measured.

    Attributes:
        task: PEFT's task type: "CAUSAL_LM", "SEQ_CLS" or "SEQ_2_SEQ_LM".
        longest_tokens: what one example costs at most in a forward pass.
        names: of the trainer's log, by the name that our metrics give them; the loss and the
            learning rate are there in any case.
    """

    task: str
    criterion: Criterion
    counts: Counts
    longest_tokens: int
    names: Mapping[str, str]

    def load_model(self, directory: Path) -> PreTrainedModel:
        """The model of a checkpoint in float32, with whatever head the method puts on it.

        Raises:
            JobError: BASE_MODEL_UNSUPPORTED.
        """

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def build_trainer(self, run: "Run", model: PreTrainedModel) -> Trainer:
        """The trainer, from ``run.arguments()`` and what the method adds to them."""

    def measure(self, run: "Run") -> dict[str, float]:
        """The model in training on the held-out examples; names begin with ``valid_``."""

    def heldout_stream(self) -> NDArray[Any] | None:
        """Held-out tokens by which what is made of a checkpoint is judged; shape (tokens,).
        None: it is not compressed."""

    def calibration_rows(self) -> Rows | None:
        """What the compressor may observe activations on; None: it is not compressed."""
