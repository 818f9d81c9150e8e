"""Rows of logits to the entries of ``logprobs`` and ``prompt_logprobs``.

Pure and free of imports from this package, because the file is copied beside ``model.py``
into the Triton repository.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class Entries:
    """Writes entries as JSON, one at a time: one call for all would stop every other thread.

    ``spelling`` is what each token spells, by id; one that spells nothing is told by its name in
    ``names``.
    """

    def __init__(self, spelling: Sequence[bytes], names: Sequence[str]) -> None:
        self._spelling = spelling
        self._names = names
        self._told: dict[int, str] = {}

    def of_rows(self, rows: Any, tokens: Sequence[int], alternatives: int) -> Iterator[str]:
        """An entry for each token, from the logits that it was chosen by.

        Args:
            rows: float32, (len(tokens), vocabulary).
            alternatives: how many of the likeliest tokens are told with each.
        """
        for row, token in zip(rows, tokens, strict=True):
            logprobs = log_softmax(row)
            top = likeliest(logprobs[: len(self._spelling)], alternatives)
            told = ",".join(f"{{{self._tell(one, logprobs[one])}}}" for one in top)
            yield f'{{{self._tell(token, logprobs[token])},"top":[{told}]}}'

    def of_first(self, token: int) -> str:
        """The entry of a prompt's first token, which nothing comes before."""
        return f'{{{self._tell(token, -math.inf)},"top":[]}}'

    def _tell(self, token: int, logprob: float) -> str:
        if token not in self._told:
            piece = self._spelling[token]
            text = piece.decode(errors="replace") if piece else self._names[token]
            about = {"id": token, "token": text, "bytes": list(piece)}
            self._told[token] = json.dumps(about, separators=(",", ":"))[1:-1]
        # JSON has no minus infinity.
        value = f"{logprob:.7g}" if math.isfinite(logprob) else "null"
        return f'{self._told[token]},"logprob":{value}'


def log_softmax(row: Any) -> Any:
    """Log-probabilities, natural, of one row of logits; float32."""
    shifted = row - row.max()
    return shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))


def likeliest(logprobs: Any, count: int) -> list[int]:
    """Ids of the ``count`` likeliest tokens, best first; of two alike the smaller id."""
    if not count:
        return []
    count = min(count, len(logprobs))
    found = np.argpartition(logprobs, -count)[-count:]
    return sorted(map(int, found), key=lambda token: (-logprobs[token], token))
