"""Choosing the next tokens of many requests at once, each by its own sampling parameters.

Pure and free of imports from this package, because the file is copied beside ``model.py`` into
the Triton repository. The rules are those of ``sampler.py``, which is for one request on the CPU;
here a batch stays on the device that computed it, and only the tokens leave it.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

LARGEST_PENALTY = 2.0


class Chooser:
    """One request's part. ``options`` are those of ``Sampling``, ``bias`` is by token id.

    A seed repeats an answer, whatever else is in the batch; on another kind of device, or in
    another precision, the logits differ a little and so may the answer.

    Raises:
        ValueError: naming the parameter that is out of range.
    """

    def __init__(self, options: Mapping[str, Any], bias: Mapping[int, float]) -> None:
        check_ranges(options)
        self.draws = bool(options["do_sample"])
        self.temperature = float(options.get("temperature", 1.0))
        # 0 is the same as none at all, as GenerationConfig has it.
        self.top_k = int(options.get("top_k", 0)) or 2**31
        self.top_p = float(options.get("top_p", 1.0))
        self._presence = float(options.get("presence_penalty", 0.0))
        self._frequency = float(options.get("frequency_penalty", 0.0))
        self._bias = dict(bias)
        self._chosen: Counter[int] = Counter()
        self._random = random.Random(options["rng_seed"])

    def number(self) -> float:
        """The next random number of the request, in [0, 1)."""
        return self._random.random()

    def remember(self, token: int) -> None:
        if self._presence or self._frequency:
            self._chosen[token] += 1

    def additions(self) -> dict[int, float]:
        """What is to be added to the logits, by token id."""
        added = dict(self._bias)
        for token, times in self._chosen.items():
            added[token] = added.get(token, 0.0) - self._presence - self._frequency * times
        return added


def choose(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The next token of each request.

    Args:
        logits: float32, (requests, vocabulary); not changed.
    """
    scores = logits.clone()
    for row, chooser in enumerate(choosers):
        if added := chooser.additions():
            ids = torch.tensor(list(added), device=scores.device)
            scores[row, ids] += torch.tensor(list(added.values()), device=scores.device)
    tokens = scores.argmax(-1)
    drawing = [row for row, chooser in enumerate(choosers) if chooser.draws]
    if drawing:
        tokens[drawing] = draw(scores[drawing], [choosers[row] for row in drawing])
    found: list[int] = tokens.tolist()
    for token, chooser in zip(found, choosers, strict=True):
        chooser.remember(token)
    return found


def draw(scores: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
    """Draw by temperature, then of the ``top_k`` likeliest, then of those that make up ``top_p``.

    Returns:
        Token ids, int64, (requests).
    """

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    ordered = (ordered.double() - ordered[:, :1]) / column([one.temperature for one in choosers])
    rank = torch.arange(scores.shape[1], device=scores.device)
    shares = ordered.exp() * (rank < column([one.top_k for one in choosers]))
    shares /= shares.sum(-1, keepdim=True)
    before = shares.cumsum(-1) - shares
    shares *= (before < column([one.top_p for one in choosers])) | (rank == 0)
    running = shares.cumsum(-1)
    numbers = column([one.number() for one in choosers]) * running[:, -1:]
    # Rounding may put the number at the very end, behind which nothing was left to draw.
    last = (shares > 0).sum(-1, keepdim=True) - 1
    place = torch.searchsorted(running, numbers, right=True).minimum(last)
    return ids.gather(-1, place)[:, 0]


def check_ranges(options: Mapping[str, Any]) -> None:
    """The ranges of GenAI's GenerationConfig.

    Raises:
        ValueError: naming the parameter that is out of its range.
    """
    temperature, top_p = options.get("temperature", 1.0), options.get("top_p", 1.0)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be 0 or more, but got {temperature:g}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, but got {top_p:g}")
    if options.get("top_k", 0) < 0:
        raise ValueError(f"top_k must be 0 or more, but got {options['top_k']}")
    for name in ("presence_penalty", "frequency_penalty"):
        if not abs(options.get(name, 0.0)) <= LARGEST_PENALTY:
            raise ValueError(
                f"{name} must be -{LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}, "
                f"but got {options[name]:g}"
            )
