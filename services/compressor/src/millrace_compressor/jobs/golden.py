"""The golden prompts of an artifact (``millrace_runtime.golden``): what rollouts are judged by.

Windows are chosen by the hash of their own tokens, from the same held-out tokens that perplexity
is measured on: every checkpoint of a run gets the same ones.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from millrace_compressor.jobs.format import Scored
from millrace_runtime import golden, parity
from millrace_runtime.golden import TOKENIZER_NAME, GoldenPrompt
from millrace_runtime.parity import ParityError, Probe

WINDOWS = 16
WINDOW_TOKENS = 64
CONVERSATIONS = 8
_DIGITS = 6


def write(converted: Path, checkpoint: Path, windows: NDArray[np.int64], original: Scored) -> None:
    """Leave ``golden.json`` in ``converted``.

    Args:
        windows: held-out ones, (windows, positions); shorter ones are cut of them.
        original: the checkpoint itself.
    """
    chosen = [*_conversations(checkpoint), *_chosen(windows)]
    tokenizer = _tokenizer(converted)
    golden.write(converted, [_prompt(*each, tokenizer, original) for each in chosen])


def _chosen(windows: NDArray[np.int64]) -> Iterable[tuple[Probe, int]]:
    """Probes of windows, each with how many of its tokens are the prompt's: a half."""
    length = min(WINDOW_TOKENS, windows.shape[1])
    cut = windows[:, : windows.shape[1] // length * length].reshape(-1, length)
    keyed = {hashlib.sha256(row.tobytes()).hexdigest(): row for row in cut}
    for key in sorted(keyed)[:WINDOWS]:
        ids = keyed[key].tolist()
        yield Probe(f"golden/{key[:16]}", token_ids=ids), len(ids) // 2


def _conversations(checkpoint: Path) -> Iterable[tuple[Probe, int]]:
    """Those of the tuning job's probes that it rendered and continued."""
    if not (checkpoint / parity.REPORT_NAME).exists():
        return []
    try:
        probes = parity.read(checkpoint).probes
    except ParityError:
        return []  # which the measurement of parity says
    rendered = [
        probe
        for probe in probes
        if probe.messages is not None and 0 < probe.prompt_tokens < len(probe.token_ids)
    ]
    return [(probe, probe.prompt_tokens) for probe in rendered[:CONVERSATIONS]]


def _prompt(
    probe: Probe, prompt_tokens: int, tokenizer: Tokenizer | None, original: Scored
) -> GoldenPrompt:
    ids = [int(token) for token in probe.token_ids]
    before, after = ids[:prompt_tokens], ids[prompt_tokens:]
    return GoldenPrompt(
        name=f"chat/{probe.name}" if probe.messages is not None else probe.name,
        prompt_ids=before,
        continuation_ids=after,
        prompt=_text(tokenizer, before),
        continuation=_text(tokenizer, after),
        original=_score(original, ids, prompt_tokens),
        messages=probe.messages,
        tools=probe.tools,
    )


def _tokenizer(converted: Path) -> Tokenizer | None:
    path = converted / TOKENIZER_NAME
    return Tokenizer.from_file(str(path)) if path.exists() else None


def _text(tokenizer: Tokenizer | None, ids: list[int]) -> str:
    return "" if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=False))


def _score(model: Scored, ids: list[int], prompt_tokens: int) -> float | None:
    """Mean natural log-probability of the tokens after the prompt's."""
    logits = torch.from_numpy(np.array(model.logits(np.array([ids], np.int64))[0, :-1]))
    following = torch.tensor(ids[1:])[:, None]
    scores = logits.float().log_softmax(-1).gather(-1, following)[prompt_tokens - 1 :, 0]
    mean = float(scores.mean())
    return round(mean, _DIGITS) if np.isfinite(mean) else None
