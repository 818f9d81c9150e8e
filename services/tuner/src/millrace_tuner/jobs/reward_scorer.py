"""Scoring answers with a committed reward model (``jobs.reward``)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from millrace_runtime.jobs import JobError

_BATCH_TOKENS = 16_384  # what one forward pass holds at most, padding included
_HEAD = "ForSequenceClassification"


class RewardScorer:
    """A reward model, in float32, on the accelerator where there is one; it is never trained.

    Raises:
        JobError: REWARD_MODEL_UNSUITABLE, when the checkpoint holds another kind of model.
    """

    def __init__(self, directory: Path) -> None:
        """``directory`` is a committed checkpoint, with the model below it in ``model``."""
        require_reward_model(directory)
        self._model = _load(directory / "model")
        self._pad_token_id = int(self._model.config.pad_token_id)

    def score(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """The reward of each sequence, a prompt's token ids and its answer's through the stop
        token, shape (tokens,); result (sequences,). It does not depend on what is scored beside.

        Raises:
            ValueError: a sequence is empty.
        """
        rewards = np.zeros(len(sequences), dtype=np.float32)
        for places in _batches([len(sequence) for sequence in sequences]):
            rewards[places] = self._score([sequences[place] for place in places])
        return rewards

    @torch.inference_mode()
    def _score(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        device = self._model.device
        longest = max(len(sequence) for sequence in sequences)
        shape = (len(sequences), longest)
        token_ids = torch.full(shape, self._pad_token_id, device=device)
        mask = torch.zeros(shape, dtype=torch.long, device=device)
        for row, sequence in enumerate(sequences):
            token_ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
            mask[row, : len(sequence)] = 1
        logits = self._model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits
        rewards: NDArray[np.float32] = logits[:, 0].float().cpu().numpy()
        return rewards


def require_reward_model(directory: Path) -> None:
    """Refuse what would be loaded with a head that nobody has trained.

    Raises:
        JobError: REWARD_MODEL_UNSUITABLE.
    """
    try:
        config = json.loads((directory / "model" / "config.json").read_text())
    except (OSError, ValueError) as error:
        message = f"the reward model cannot be read: {error}; name a job of the method reward"
        raise JobError("REWARD_MODEL_UNSUITABLE", message) from error
    architectures = config.get("architectures") or ["nothing"]
    labels = config.get("id2label") or {"0": "", "1": ""}  # two are transformers' default
    if not architectures[0].endswith(_HEAD) or len(labels) != 1:
        message = (
            f"the reward model is a {architectures[0]}, which gives no reward; name a job of the "
            "method reward or the model that it made"
        )
        raise JobError("REWARD_MODEL_UNSUITABLE", message)


def _load(model_directory: Path) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            model_directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"the reward model cannot be loaded: {error}"
        raise JobError("REWARD_MODEL_UNSUITABLE", message) from error
    model.requires_grad_(False)
    model.eval()  # type: ignore[no-untyped-call]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # the stub hides Module.to
    return model


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of sequences that share a forward pass: neighbours in length, within memory."""
    if 0 in lengths:
        raise ValueError("a sequence to score must hold a token")
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
