"""How much each layer, group and unit of a decoder matters, on windows of tokens.

A layer matters as much as it changes what goes through it: 1 - cos(input, output), the block
influence of Men et al. 2024 (ShortGPT, arXiv:2403.03853). A group or unit matters as much as the
loss would change without it, in the first order: |sum of activation x gradient| (Molchanov et al.
2019, arXiv:1906.10771; Ma et al. 2023, LLM-Pruner, arXiv:2305.11627). The activation alone, as
in Minitron (Muralidharan et al. 2024, arXiv:2407.14679), does not see whether anything reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from millrace_compressor.jobs import anatomy
from millrace_compressor.jobs.format import Tokens

Importances = NDArray[np.float64]

_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class Importance:
    """Means over all tokens: of layers (layers,), groups (layers, groups), units (layers, units).

    ``groups`` and ``units`` are None where they were not asked for.
    """

    layers: Importances
    groups: Importances | None
    units: Importances | None


class _Mean:
    """A running mean over the tokens of one tensor of a layer."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._tokens = 0

    def add(self, of_tokens: Tensor) -> None:
        """``of_tokens``: (windows, positions) or (windows, positions, parts)."""
        self._sum = self._sum + of_tokens.double().sum((0, 1))
        self._tokens += of_tokens.shape[0] * of_tokens.shape[1]

    def value(self) -> Importances:
        mean: Importances = np.asarray(self._sum, np.float64) / max(self._tokens, 1)
        return mean


def measure(model: Any, windows: Tokens, *, groups: bool, units: bool) -> Importance:
    """Run the windows through the model and back; no weight gets a gradient.

    Args:
        windows: (windows, positions).
        groups, units: whether these are measured, which needs the way back.
    """
    layers = anatomy.layers_of(model)
    of_layers = [_Mean() for _ in layers]
    of_groups = [_Mean() for _ in layers if groups]
    of_units = [_Mean() for _ in layers if units]
    hooks = [
        layer.register_forward_hook(_influence(mean))
        for layer, mean in zip(layers, of_layers, strict=True)
    ]
    count = model.config.num_key_value_heads
    watched: list[Any] = list(layers)
    for layer, mean in zip(watched, of_groups, strict=False):
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(_taylor(mean, count)))
    for layer, mean in zip(watched, of_units, strict=False):
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(_taylor(mean, None)))
    try:
        _run(model, windows, is_back=groups or units)
    finally:
        for hook in hooks:
            hook.remove()
    return Importance(_stacked(of_layers), _optional(of_groups), _optional(of_units))


def _run(model: Any, windows: Tokens, *, is_back: bool) -> None:
    model.requires_grad_(False)
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        ids = torch.from_numpy(windows[start : start + _WINDOWS_AT_ONCE])
        if not is_back:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
            continue
        # The only leaf that asks for a gradient, so that there is a way back at all.
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()


def _influence(mean: _Mean) -> Callable[[Any, Any, Any], None]:
    def hook(module: Any, given: Any, made: Any) -> None:
        output = made[0] if isinstance(made, tuple) else made
        mean.add(1 - cosine_similarity(given[0].detach(), output.detach(), dim=-1))

    return hook


def _taylor(mean: _Mean, groups: int | None) -> Callable[[Any, Any], None]:
    """Of what a projection reads: (windows, positions, groups x width); None: width is 1."""

    def hook(module: Any, given: Any) -> None:
        read = given[0]
        parts = groups or read.shape[-1]

        def back(gradient: Tensor) -> None:
            change = (read.detach() * gradient).unflatten(-1, (parts, -1))
            mean.add(change.sum(-1).abs())

        read.register_hook(back)

    return hook


def _stacked(means: list[_Mean]) -> Importances:
    return np.stack([mean.value() for mean in means])


def _optional(means: list[_Mean]) -> Importances | None:
    return _stacked(means) if means else None
