"""What activations are observed on: rows of what the model was trained on, never those that judge.

A window is chosen by the hash of its own tokens and a seed, so that the same data and seed give
the same windows, byte for byte. One that equals a held-out window is never among them.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from millrace_compressor.jobs.format import Calibration, Source, Tokens
from millrace_runtime.jobs import JobError

OWN: Source = "CALIBRATION_SOURCE_OWN"
GENERIC: Source = "CALIBRATION_SOURCE_GENERIC"
# More are not looked at: they are taken at equal distances, so that huge data costs no more.
_LOOKED_AT = 16_384
_LEAST_TOKENS = 2
_CHARACTERS_A_TOKEN = 8  # more than tokenizers make of one, on average
_NO_OWN_DATA = (
    "nothing that the model was trained on came with its checkpoint; generic text was used"
)


@dataclass(frozen=True)
class Sample:
    """The windows that calibrate, shape (windows, tokens), and how they were found.

    Attributes:
        source: where they are from in the end.
        excluded: how many windows were left out, as they are among those that judge.
        note: why ``source`` is not what the recipe has; empty where it is.
    """

    windows: Tokens
    source: Source
    seed: int
    excluded: int
    note: str = ""

    def record(self) -> dict[str, Any]:
        """What the quality report says of them (``service.proto``: CalibrationRecord)."""
        windows, length = self.windows.shape
        return {
            "source": self.source,
            "seed": self.seed,
            "windows": windows,
            "window_tokens": length,
            "digest": f"sha256:{hashlib.sha256(self.windows.tobytes()).hexdigest()}",
            "excluded_windows": self.excluded,
            "note": self.note,
        }


def sample(dataset: Path, model: Path, calibration: Calibration, length: int) -> Sample:
    """``calibration.samples`` windows of ``length`` tokens, or what there is.

    Own rows are the ``train-*.npy`` in ``dataset`` (of a training run) or in its ``calibration/``
    (what a tuning job leaves). A checkpoint from elsewhere has neither: unless its own rows were
    asked for by name, it is calibrated on generic text, and the report says so.

    Raises:
        JobError: CALIBRATION_DATA_MISSING, when there is not one window.
    """
    if calibration.source == GENERIC:
        return _chosen(
            [_generic(model, calibration.samples * length)], dataset, calibration, length
        )
    shards = _shards(dataset, "train", "calibration")
    if not shards and "source" not in calibration.model_fields_set:
        instead = calibration.model_copy(update={"source": GENERIC})
        found = sample(dataset, model, instead, length)
        return Sample(found.windows, GENERIC, found.seed, found.excluded, _NO_OWN_DATA)
    return _chosen(shards, dataset, calibration, length)


def _chosen(
    shards: Sequence[Tokens], dataset: Path, calibration: Calibration, length: int
) -> Sample:
    """Those with the smallest hashes. Where no shard has a whole window, a shorter one will do."""
    length = min(length, max((len(shard) for shard in shards), default=0))
    heldout = _shards(dataset, "heldout", "evaluation")
    stream = [np.concatenate(heldout)] if heldout else []  # as ``evaluate`` reads it
    judging = {_key(window, 0) for window in _windows(stream, length)}
    excluded, found = 0, dict[bytes, Tokens]()
    for window in _windows(shards, length, _LOOKED_AT):
        if _key(window, 0) in judging:
            excluded += 1
        else:
            found[_key(window, calibration.seed)] = window
    if not found:
        raise JobError(
            "CALIBRATION_DATA_MISSING",
            f"there is no window of {length} tokens to calibrate with that does not judge"
            if excluded
            else "there are no tokens of what the model was trained on to calibrate with",
        )
    keys = heapq.nsmallest(calibration.samples, found)
    windows = np.stack([found[key] for key in keys])
    return Sample(windows, calibration.source, calibration.seed, excluded)


def _windows(shards: Sequence[Tokens], length: int, limit: int | None = None) -> Iterator[Tokens]:
    """Windows of ``length`` tokens, one behind the other in each shard, as int64."""
    if length < _LEAST_TOKENS:
        return
    ends = np.cumsum([len(shard) // length for shard in shards])
    count = int(ends[-1]) if len(ends) else 0
    for place in np.linspace(0, count - 1, min(count, limit or count)).astype(int):
        shard = int(np.searchsorted(ends, place, side="right"))
        row = int(place) - (int(ends[shard - 1]) if shard else 0)
        yield np.asarray(shards[shard][row * length : (row + 1) * length], np.int64)


def _shards(dataset: Path, name: str, folder: str) -> list[Tokens]:
    paths = sorted(dataset.glob(f"{name}-*.npy")) or sorted(
        (dataset / folder).glob(f"{name}-*.npy")
    )
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


def _generic(model: Path, tokens: int) -> Tokens:
    """About ``tokens`` tokens of the documentation that Python brings along."""
    text = "\n\n".join(topics[name] for name in sorted(topics))[: tokens * _CHARACTERS_A_TOKEN]
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return np.array(ids, np.int64)


def _key(window: Tokens, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + window.tobytes()).digest()
