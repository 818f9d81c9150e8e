"""How well a model predicts what it is to learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from millrace_tuner.jobs.examples import Example


@dataclass(frozen=True)
class Score:
    """Means over the learned tokens: the loss in nats, the share that was the most likely."""

    loss: float
    accuracy: float


@torch.no_grad()
def score(
    model: torch.nn.Module,
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    batch_size: int,
    precision: torch.dtype,
) -> Score:
    """Score ``examples`` exactly: every learned token counts the same, whatever its batch.

    Reads the model's "fused head" that TRL has put in, so logits are never held in full.
    Dropout is off while it runs, and no random number is drawn.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id)
    loss = correct = tokens = 0.0
    for batch in _batches_by_length(examples, batch_size):
        features = [{"input_ids": e.token_ids.tolist(), "labels": e.labels.tolist()} for e in batch]
        inputs = {name: tensor.to(device) for name, tensor in collate(features).items()}
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            outputs = model(**inputs, fused_lm_head=True)
        loss -= float(outputs.log_probs.double().sum())
        correct += float(outputs.is_top1.sum())
        tokens += float(outputs.label_mask.sum())
    model.train(was_training)
    return Score(loss / max(tokens, 1.0), correct / max(tokens, 1.0))


def _batches_by_length(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Neighbours in length share a batch, so that little of it is padding."""
    ordered = sorted(examples, key=lambda example: len(example.token_ids))
    return [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]
