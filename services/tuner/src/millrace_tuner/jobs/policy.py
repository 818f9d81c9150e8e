"""A policy: in which order it is asked, how it writes its answers, and what is kept of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import GenerationConfig, PreTrainedModel

from millrace_tuner.jobs import examples
from millrace_tuner.jobs.calibration import Rows
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.objective import Counts
from millrace_tuner.jobs.order import epoch_order
from millrace_tuner.jobs.prompts import Material, Prompt

_BATCH_TOKENS = 65_536  # what is written side by side at most; each has a place in the cache


class PromptSampler(Sampler[int]):
    """Indices of prompts in the order of an epoch, drawn from the seed and the epoch alone.

    Every batch is full: the first prompts of the epoch come again at its end. A prompt stands
    ``answers`` times side by side, and a batch comes ``repeats`` times in a row.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, answers: int, repeats: int
    ) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._answers = answers
        self._repeats = repeats
        self._epoch = 0

    @property
    def batches(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self._lengths, self._batch_size, self._seed, self._epoch)
        full = list(islice(cycle(order), self.batches * self._batch_size))
        for start in range(0, len(full), self._batch_size):
            batch = np.repeat(full[start : start + self._batch_size], self._answers).tolist()
            for _ in range(self._repeats):
                yield from batch

    def __len__(self) -> int:
        return self.batches * self._batch_size * self._answers * self._repeats


@dataclass(frozen=True)
class Pen:
    """How answers end: at a stop token, or after ``maximum_tokens``."""

    stop_ids: tuple[int, ...]
    pad_id: int
    maximum_tokens: int


def pen(codec: ChatCodec, model: PreTrainedModel, maximum_tokens: int) -> Pen:
    """The pen of a model just loaded, which loses its other habits: answers are drawn from its
    own distribution, not from one that its ``generation_config`` cuts (top_k, penalties)."""
    declared = model.generation_config.eos_token_id
    listed = [] if declared is None else [declared] if isinstance(declared, int) else declared
    stop_ids = tuple(dict.fromkeys((codec.tokenizer.eos_token_id, *listed)))
    pad_id = codec.tokenizer.pad_token_id
    pad_id = stop_ids[0] if pad_id is None else pad_id
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=list(stop_ids), pad_token_id=pad_id
    )
    return Pen(stop_ids, pad_id, maximum_tokens)


@torch.no_grad()
def write(
    model: Any,
    prompts: Sequence[Prompt],
    pen: Pen,
    temperature: float,
    precision: torch.dtype,
) -> list[NDArray[np.int32]]:
    """An answer to each prompt, through its stop token if it has one; shapes (tokens,).

    Dropout is off. Random numbers are drawn unless ``temperature`` is 0: then the likeliest
    token is taken each time. ``precision`` is that of training.
    """
    was_training = model.training
    model.eval()
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=pen.maximum_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=list(pen.stop_ids),
        pad_token_id=pen.pad_id,
        disable_compile=True,
    )
    answers: list[NDArray[np.int32]] = []
    for batch in _batches(prompts, pen.maximum_tokens):
        token_ids, mask = _left_padded(batch, pen.pad_id, model.device)
        with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
            written = model.generate(
                input_ids=token_ids, attention_mask=mask, generation_config=config
            )
        answers += [_ended(row, pen) for row in written[:, token_ids.shape[1] :].cpu().numpy()]
    model.train(was_training)
    return answers


def _batches(prompts: Sequence[Prompt], answer_tokens: int) -> Iterator[Sequence[Prompt]]:
    longest = max(len(prompt.token_ids) for prompt in prompts) + answer_tokens
    size = max(_BATCH_TOKENS // longest, 1)
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _left_padded(
    prompts: Sequence[Prompt], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each of shape (prompts, tokens)."""
    longest = max(len(prompt.token_ids) for prompt in prompts)
    token_ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(token_ids)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt.token_ids)
        token_ids[row, start:] = torch.from_numpy(prompt.token_ids.astype(np.int64))
        mask[row, start:] = 1
    return token_ids.to(device), mask.to(device)


def _ended(row: NDArray[np.int64], pen: Pen) -> NDArray[np.int32]:
    stops = np.flatnonzero(np.isin(row, pen.stop_ids))
    end = int(stops[0]) + 1 if len(stops) else len(row)
    return row[:end].astype(np.int32)


def texts(codec: ChatCodec, answers: Sequence[NDArray[np.int32]]) -> list[str]:
    """What is read by who asked: without the stop token."""
    ids = [answer.tolist() for answer in answers]
    return [str(text) for text in codec.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def counts(material: Material) -> Counts:
    return Counts(
        training_examples=len(material.training),
        heldout_examples=len(material.heldout),
        training_tokens=None,
        heldout_source=material.heldout_source,
        skipped_examples=material.skipped,
    )


def stream(
    codec: ChatCodec, prompts: Sequence[Prompt], answers: Sequence[NDArray[np.int32]]
) -> NDArray[Any]:
    """Held-out prompts with the policy's own answers; shape (tokens,)."""
    tokenizer = codec.tokenizer
    written = [
        _example(prompt.token_ids, answer) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return examples.heldout_stream(written, tokenizer.eos_token_id, len(tokenizer))


def calibration_rows(material: Material) -> Rows:
    """The prompts: answers are written anew in each epoch, and nobody keeps them."""
    return Rows(
        [prompt.token_ids for prompt in material.training],
        [prompt.token_ids for prompt in material.heldout],
    )


def _example(prompt: NDArray[np.int32], answer: NDArray[np.int32]) -> Example:
    is_learned = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Example(np.concatenate([prompt, answer]), is_learned, was_truncated=False)
