"""Windows of tokens that a compression has left beside a model it has pruned."""

import numpy as np

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.domain import WINDOWS_FILE
from millrace_tuner.jobs import reading, text_windows
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec


def is_meant(spec: Spec) -> bool:
    """Whether the job learns from such windows, and not from a file of examples."""
    return spec.training_file_path.name == WINDOWS_FILE


def read(spec: Spec) -> list[Example]:
    """Every token of every window is learned, but for the first.

    Raises:
        JobError: FILE_MISSING, FILE_CHANGED, WRONG_FORMAT, CONTEXT_TOO_SHORT.
    """
    path = spec.training_file_path
    if not path.is_file():
        raise JobError("FILE_MISSING", f"the windows are not at {path}; compress again")
    if manifest.sha256_file(path) != spec.training_file_sha256:
        raise JobError("FILE_CHANGED", f"{path} is not what it was; compress again")
    try:
        windows = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise JobError("WRONG_FORMAT", f"{path}: {error}") from error
    if windows.ndim != 2 or not np.issubdtype(windows.dtype, np.integer):
        raise JobError("WRONG_FORMAT", f"{path} is {windows.dtype} of shape {windows.shape}")
    limit = reading.sequence_limit(spec)
    return [text_windows.window(np.asarray(row[:limit], np.int32)) for row in windows]
