"""What a model forgets while it is tuned: its loss on the data that its base was trained on."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import base_data
from millrace_tuner.jobs.specification import Spec

if TYPE_CHECKING:
    from millrace_tuner.jobs.training import Run

BASE_LOSS = "valid_base_loss"
_WINDOW_TOKENS = 512
_TOKENS = 8192  # 16 windows: a second or so on CPUs at every checkpoint, for small models


class Forgetting:
    """Held-out tokens of the base's data, on which every checkpoint of a job is measured."""

    def __init__(self, spec: Spec, task: str) -> None:
        """``task`` is PEFT's task type: what does not generate text is not measured.

        Raises:
            JobError: BASE_DATA_INVALID, INVALID_SPEC.
        """
        path = base_data.directory(spec) if task == "CAUSAL_LM" else None
        self._windows = (
            None if path is None else base_data.heldout_windows(path, _WINDOW_TOKENS, _TOKENS)
        )

    def measure(self, run: "Run") -> dict[str, float]:
        """The mean loss, in nats a token, as ``valid_base_loss``; nothing without such data.

        Raises:
            JobError: BASE_DATA_INVALID, when the data was not made with the base's tokenizer.
        """
        if self._windows is None:
            return {}
        return {BASE_LOSS: mean_loss(run.model, self._windows, run.precision)}

    def report(self, before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint's metadata says of it: losses in nats a token, and of how many
        tokens; nothing without such data."""
        if self._windows is None:
            return {}
        report = {
            "base_loss_before": before[BASE_LOSS],
            "base_loss_after": after[BASE_LOSS],
            "tokens": _predicted(self._windows),
        }
        return {"forgetting": report}


@torch.no_grad()
def mean_loss(model: Any, windows: NDArray[np.int64], precision: torch.dtype) -> float:
    """The mean over what is predicted, in nats; dropout is off, no random number is drawn.

    A window a pass: of 512 positions, the logits of large vocabularies take 0.3 GiB.
    """
    device = next(model.parameters()).device
    _require_known(windows, int(model.config.get_text_config().vocab_size))
    was_training = model.training
    model.eval()
    total = 0.0
    for window in torch.from_numpy(windows).to(device):
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            logits = model(input_ids=window[None], use_cache=False).logits
        predictions = logits[0, -len(window) : -1].float()  # without those of a prompt adapter
        total += float(cross_entropy(predictions, window[1:], reduction="sum"))
    model.train(was_training)
    return total / _predicted(windows)


def _predicted(windows: NDArray[np.int64]) -> int:
    """How many tokens are predicted: all but the first of each window."""
    count, length = windows.shape
    return int(count * (length - 1))


def _require_known(windows: NDArray[np.int64], vocabulary_size: int) -> None:
    largest = int(windows.max())
    if largest >= vocabulary_size:
        message = (
            f"the data that the base is measured by holds the token {largest}, but the base's "
            f"vocabulary has {vocabulary_size}; register the base with data of its own tokenizer"
        )
        raise JobError("BASE_DATA_INVALID", message)
