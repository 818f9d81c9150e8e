"""How far a student's distributions are from a teacher's, without the logits of a whole batch."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from millrace_tuner.methods import Distillation

_IGNORED = -100
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """Of a batch: the divergence (in nats, with a gradient) and the student's entropy, each
    summed over the ``tokens`` that are learned."""

    divergence: Tensor
    entropy: Tensor
    tokens: int


class Divergence:
    """The generalised Jensen-Shannon divergence (Agarwal et al. 2023, arXiv:2306.13649, section
    2.1), between the forward (0) and the reverse (1) of Kullback and Leibler."""

    def __init__(self, teacher: PreTrainedModel, method: Distillation) -> None:
        frozen: Any = teacher
        self._teacher = frozen.requires_grad_(False).eval()
        self._method = method

    def __call__(self, student: Any, head: PreTrainedModel, batch: Batch) -> Found:
        """
        Args:
            student: the model as it is called; ``head`` is the same without what wraps it.
            batch: ``input_ids``, ``attention_mask`` and ``labels``; shapes (rows, tokens).
        """
        learned = batch["labels"][:, 1:] != _IGNORED
        with torch.no_grad():
            of_teacher = _hidden(self._teacher, self._teacher, batch)[learned]
        of_student = _hidden(student, head, batch)[learned]
        # Vocabularies that are the same may be padded to different sizes.
        shared = min(_vocabulary_size(model) for model in (head, self._teacher))
        divergences, entropies = ChunkedDivergenceFunction.apply(  # type: ignore[no-untyped-call]
            of_student,
            *_head(head, shared),
            of_teacher,
            *_head(self._teacher, shared),
            self._method.interpolation,
            self._method.temperature,
            *_shape_of_logits(head),
            *_shape_of_logits(self._teacher),
        )
        return Found(divergences.sum(), entropies.detach().sum(), int(learned.sum()))


def _hidden(model: Any, bare: PreTrainedModel, batch: Batch) -> Tensor:
    """What the head reads at every token but the last; shape (rows, tokens - 1, width).

    A prompt adapter puts places before those of the batch.
    """
    given: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "logits_to_keep" in inspect.signature(type(bare).forward).parameters:
        given["logits_to_keep"] = 1  # none is read
    outputs = model(**given, use_cache=False, output_hidden_states=True)
    states: Tensor = outputs.hidden_states[-1]
    return states[:, -batch["input_ids"].shape[1] : -1]


def _vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _head(model: PreTrainedModel, size: int) -> tuple[Tensor, Tensor | None]:
    layer: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    bias = getattr(layer, "bias", None)
    return layer.weight[:size], None if bias is None else bias[:size]


def _shape_of_logits(model: PreTrainedModel) -> tuple[float, float | None]:
    """What Cohere's and Gemma's models do to logits: a factor, and a soft cap."""
    config = model.config.get_text_config()
    return getattr(config, "logit_scale", 1.0), getattr(config, "final_logit_softcapping", None)
