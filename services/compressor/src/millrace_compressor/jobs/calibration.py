"""What activations are observed on: rows of what the model was trained on, never those that judge.

A window is chosen by the hash of its own tokens and a seed, so that the same data and seed give
the same windows, however the shards are cut.
"""

import hashlib
from pathlib import Path

import numpy as np

from millrace_compressor.jobs.format import Calibration, Tokens
from millrace_runtime.jobs import JobError


def windows(dataset: Path, calibration: Calibration, length: int) -> Tokens:
    """``calibration.samples`` windows of ``length`` tokens of the ``train-*.npy`` in ``dataset``.

    Raises:
        JobError: CALIBRATION_DATA_MISSING, when there is not one window.
    """
    shards = [
        np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(dataset.glob("train-*.npy"))
    ]
    cut = [shard[: len(shard) // length * length].reshape(-1, length) for shard in shards]
    found = np.concatenate(cut) if cut else np.empty((0, length))
    if not len(found):
        raise JobError(
            "CALIBRATION_DATA_MISSING",
            f"there is no window of {length} tokens in the data that the model was trained on",
        )
    keyed = sorted(range(len(found)), key=lambda row: _key(found[row].tobytes(), calibration.seed))
    return found[keyed[: calibration.samples]].astype(np.int64)


def _key(window: bytes, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big") + window).digest()
