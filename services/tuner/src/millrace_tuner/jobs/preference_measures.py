"""How well a model in training tells held-out answers apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from millrace_tuner.jobs.preference_batches import (
    ComparedCollator,
    JudgedCollator,
    compared_row,
    in_batches,
    judged_row,
)
from millrace_tuner.jobs.preference_examples import Compared, Verdict

if TYPE_CHECKING:
    from millrace_tuner.jobs.training import Run


@contextmanager
def measuring(run: "Run") -> Iterator[None]:
    """Dropout is off, forward passes have the run's precision, and no random number is drawn."""
    was_training, device = run.model.training, next(run.model.parameters()).device
    run.model.eval()
    with torch.autocast(device.type, run.precision, enabled=run.precision != torch.float32):
        yield
    run.model.train(was_training)


def of_pairs(
    run: "Run", heldout: Sequence[Compared], collate: ComparedCollator
) -> dict[str, float]:
    """Every pair counts the same, whatever its batch; the loss is that of training."""
    trainer: Any = run.trainer
    total = np.zeros(3)
    with measuring(run):
        for batch in in_batches(heldout, run.micro_batch_size):
            inputs = trainer._prepare_inputs(collate([compared_row(e) for e in batch]))
            total += np.array(trainer.measured(inputs)) * len(batch)
    loss, accuracy, margin = total / len(heldout)
    return _named(loss, accuracy, margin)


def of_verdicts(
    run: "Run", heldout: Sequence[Verdict], collate: JudgedCollator
) -> dict[str, float]:
    """The accuracy is the share of good answers with a reward above 0 and of bad ones below.

    The margin is the mean reward of good answers less that of bad ones; 0, which is the base's,
    stands for a kind that is not held out.
    """
    trainer: Any = run.trainer
    loss = 0.0
    rewards: dict[bool, list[float]] = {True: [], False: []}
    with measuring(run):
        for batch in in_batches(heldout, run.micro_batch_size):
            inputs = trainer._prepare_inputs(collate([judged_row(e) for e in batch]))
            batch_loss, found = trainer.measured(inputs)
            loss += batch_loss * len(batch)
            for example, reward in zip(batch, found.tolist(), strict=True):
                rewards[example.is_good].append(reward)
    good, bad = rewards[True], rewards[False]
    right = sum(reward > 0 for reward in good) + sum(reward < 0 for reward in bad)
    margin = float(np.mean(good or [0.0]) - np.mean(bad or [0.0]))
    return _named(loss / len(heldout), right / len(heldout), margin)


def _named(loss: float, accuracy: float, margin: float) -> dict[str, float]:
    return {
        "valid_loss": float(loss),
        "valid_reward_accuracy": float(accuracy),
        "valid_reward_margin": float(margin),
    }
