"""Greedy answers to prompts of different lengths, through the runtimes that artifacts run in.

Prompts are token ids, and so are answers: without the token that ended them, which is one of
``stops``. All prompts that are computed together end when the last of them does.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import openvino
import openvino_genai
import torch
from openvino_genai.py_openvino_genai import GenerationStatus

from millrace_compressor.jobs.format import Tokens
from millrace_runtime.jobs import JobError

Ids = Sequence[int]
# Of one batch: a step costs a small model hardly more for many rows than for one, and a large
# one must have room for what it remembers of them.
ROWS_AT_ONCE = 64
TOKENS_AT_ONCE = 8192  # of the prompts, padding included

Step = Callable[[Tokens, Any], tuple[Tokens, Any]]
"""(ids (rows, positions), what was computed before them) -> (the next id of each row, the same)."""


def with_transformers(
    model: Any, prompts: Sequence[Ids], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    """By a causal language model of transformers; prompts are padded on their left."""
    taken = inspect.signature(model.forward).parameters
    return _in_order(
        prompts,
        _batches(prompts),
        lambda some: _padded(model, taken, some, tokens, stops),
    )


@torch.inference_mode()
def _padded(
    model: Any, taken: Collection[str], prompts: Sequence[Ids], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    length = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1

    def step(following: Tokens, before: Any) -> tuple[Tokens, Any]:
        nonlocal mask
        given = torch.from_numpy(following)
        if before is not None:
            mask = torch.cat([mask, torch.ones_like(given)], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
        # Not every model takes them; without, it finds the positions in the mask itself.
        optional = {"position_ids": positions, "logits_to_keep": 1}
        told = model(
            input_ids=given,
            attention_mask=mask,
            past_key_values=before,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in taken},
        )
        return told.logits[:, -1].argmax(-1).numpy(), told.past_key_values

    return greedy(step, ids.numpy(), tokens, stops)


def with_steps(
    step: Step, prompts: Sequence[Ids], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    """By what knows no padding: only prompts of one length are computed together.

    ``step`` is given None for what was before the prompt.
    """

    def answer(some: Sequence[Ids]) -> list[list[int]]:
        return greedy(step, np.array(some, np.int64), tokens, stops)

    return _in_order(prompts, _of_one_length(prompts), answer)


def greedy(step: Step, ids: Tokens, tokens: int, stops: Collection[int]) -> list[list[int]]:
    """The likeliest token after each row, again and again."""
    answers: list[list[int]] = [[] for _ in ids]
    open_rows, before = set(range(len(ids))), None
    for _ in range(tokens):
        following, before = step(ids, before)
        for row in sorted(open_rows):
            if int(following[row]) in stops:
                open_rows.discard(row)
            else:
                answers[row].append(int(following[row]))
        if not open_rows:
            break
        ids = following[:, None]
    return answers


def with_pipeline(
    pipeline: Any, prompts: Sequence[Ids], tokens: int, stops: Collection[int]
) -> list[list[int]]:
    """By OpenVINO GenAI's ContinuousBatchingPipeline.

    Raises:
        JobError: TASK_NOT_ANSWERED, when a prompt has no room in its cache.
    """
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.stop_token_ids = set(stops)

    def answer(some: Sequence[Ids]) -> list[list[int]]:
        handles = [
            pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), config)
            for number, prompt in enumerate(some)
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        return [_told(handle, stops) for handle in handles]

    return _in_order(prompts, _batches(prompts), answer)


def _told(handle: Any, stops: Collection[int]) -> list[int]:
    if handle.get_status() != GenerationStatus.FINISHED:
        raise JobError("TASK_NOT_ANSWERED", "a prompt of the task does not fit the engine's cache")
    ids = [int(token) for token in handle.read_all()[0].generated_ids]
    ends = [place for place, token in enumerate(ids) if token in stops]
    return ids[: ends[0]] if ends else ids


def _in_order(
    prompts: Sequence[Ids],
    batches: Sequence[Sequence[int]],
    answer: Callable[[Sequence[Ids]], list[list[int]]],
) -> list[list[int]]:
    """What ``answer`` says of each batch of prompts, given by their places, in their own order."""
    found: list[list[int]] = [[] for _ in prompts]
    for places in batches:
        told = answer([prompts[place] for place in places])
        for place, ids in zip(places, told, strict=True):
            found[place] = ids
    return found


def _batches(prompts: Sequence[Ids]) -> list[list[int]]:
    """Places of prompts, the like-long ones together: padding is computed for nothing."""
    return list(_cut(prompts, _by_length(prompts)))


def _of_one_length(prompts: Sequence[Ids]) -> list[list[int]]:
    groups = groupby(_by_length(prompts), key=lambda place: len(prompts[place]))
    return [batch for _, places in groups for batch in _cut(prompts, places)]


def _by_length(prompts: Sequence[Ids]) -> list[int]:
    return sorted(range(len(prompts)), key=lambda place: len(prompts[place]))


def _cut(prompts: Sequence[Ids], places: Iterable[int]) -> Iterator[list[int]]:
    """Batches of places that come shortest first."""
    batch: list[int] = []
    for place in places:
        padded = (len(batch) + 1) * len(prompts[place])
        if batch and (len(batch) == ROWS_AT_ONCE or padded > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
