"""A full disk, told apart from the other ways in which writing fails."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_NOTHING_LEFT_BYTES = 1 << 16


@contextmanager
def full_disk_is_said(directory: Path) -> Iterator[None]:
    """Call a failure in the block by its name if the disk of ``directory`` is what is full.

    What was being written is removed: it would fill the disk for others, and is of no use.

    Raises:
        JobError: STORAGE_FULL.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if not is_full(error, directory):
            raise
        for unfinished in directory.rglob(f"{manifest.TEMPORARY_PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        message = f"the disk of {directory} is full; what was committed is kept. Make room first"
        raise JobError("STORAGE_FULL", message) from error


def is_full(error: BaseException, directory: Path) -> bool:
    """Whether ``error`` is that of a full disk: by its number or its words, or by the disk itself.

    torch's writer says only at which position it stopped, and safetensors only has words. Nor
    does a rank whose peer found the disk full hear more than that the peer has gone.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NUMBERS:
            return True
        if "No space left on device" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return directory.exists() and shutil.disk_usage(directory).free < _NOTHING_LEFT_BYTES
