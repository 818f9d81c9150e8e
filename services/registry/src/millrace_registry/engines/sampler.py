"""Choosing the next token with ``logit_bias``, which GenAI has no option for.

Pure and free of imports from this package, because the file is copied beside ``model.py``
into the Triton repository.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np


class Sampler:
    """Chooses as GenAI does, after the bias: penalties, temperature, top_k, top_p.

    ``options`` are keyword arguments of GenerationConfig, in range; ``bias`` is what is added to
    the logits, by token id. A seed repeats an answer, but not one that GenAI chose with it.
    """

    def __init__(self, options: Mapping[str, Any], bias: Mapping[int, float]) -> None:
        self._options = options
        self._biased = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float64)
        self._chosen: Counter[int] = Counter()
        self._random = np.random.default_rng(options["rng_seed"])

    def choose(self, row: Any) -> int:
        """The next token, by one row of logits."""
        token = self._choose(row.astype(np.float64))
        self._chosen[token] += 1
        return token

    def _choose(self, scores: Any) -> int:
        scores[self._biased] += self._bias
        for token, times in self._chosen.items():
            scores[token] -= self._options.get("presence_penalty", 0.0)
            scores[token] -= self._options.get("frequency_penalty", 0.0) * times
        if not self._options["do_sample"]:
            return int(scores.argmax())
        return self._draw((scores - scores.max()) / self._options["temperature"])

    def _draw(self, scores: Any) -> int:
        order = np.argsort(-scores, kind="stable")[: self._options.get("top_k", len(scores))]
        shares = np.exp(scores[order])
        running = np.cumsum(shares / shares.sum())
        kept = int(np.searchsorted(running, self._options.get("top_p", 1.0))) + 1
        running = running[:kept]
        return int(order[np.searchsorted(running, self._random.random() * running[-1], "right")])
