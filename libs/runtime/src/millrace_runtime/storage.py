"""A full or failing disk, told apart from everything else that goes wrong.

    STORAGE_FULL    there is no room: ENOSPC, EDQUOT, SQLite's "database or disk is full"
    STORAGE_ERROR   the disk, or the database on it, cannot be read or written: EIO, EROFS

Neither is its user's mistake, and both may pass. So a call that meets one is refused with its
name and may be made again, and work that meets one waits and is tried again, as often as needed.
"""

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from millrace_runtime import manifest
from millrace_runtime.errors import MillraceError, ResourceExhausted, Unavailable

FULL = "STORAGE_FULL"
ERROR = "STORAGE_ERROR"
REASONS = frozenset({FULL, ERROR})
RETRY_WAIT = timedelta(seconds=15)
"""How long work that met a storage fault is put off, each time."""

_FULL_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})
_ERROR_NUMBERS = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ESTALE, errno.EUCLEAN})
# https://www.sqlite.org/rescode.html: the primary code is the lowest byte.
_SQLITE_REASONS = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR: ERROR,
    sqlite3.SQLITE_READONLY: ERROR,
    sqlite3.SQLITE_CANTOPEN: ERROR,
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html: disk_full, io_error
_POSTGRESQL_REASONS = {"53100": FULL, "58030": ERROR}
_NOTHING_LEFT_BYTES = 1 << 16


def reason_of(error: BaseException | None) -> str | None:
    """STORAGE_FULL or STORAGE_ERROR if that is what ``error`` comes from, however deep; else None.

    torch and safetensors only have words for it.
    """
    return next(filter(None, map(_own_reason, _chain(error))), None)


def is_full(directory: Path) -> bool:
    """Whether nothing more can be written in ``directory``, or where it would be made."""
    existing = next(path for path in (directory, *directory.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free < _NOTHING_LEFT_BYTES


def message_of(reason: str, what: str) -> str:
    """What to tell a user of a storage fault at ``what``."""
    if reason == FULL:
        return f"the disk of {what} is full; it goes on by itself once there is room"
    return f"the disk of {what} cannot be read or written; it goes on by itself once it can"


def answer_of(error: BaseException) -> MillraceError | None:
    """The answer to a call that met a storage fault; None when ``error`` is something else."""
    reason = reason_of(error)
    if reason == FULL:
        return ResourceExhausted("the disk is full; try again when there is room", reason=FULL)
    if reason == ERROR:
        return Unavailable("the disk cannot be read or written; try again later", reason=ERROR)
    return None


def remove_unfinished(directory: Path) -> None:
    """Remove what was being written below ``directory``: it only takes up room."""
    for unfinished in directory.rglob(f"{manifest.TEMPORARY_PREFIX}*"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _own_reason(error: BaseException) -> str | None:
    if isinstance(error, sqlite3.Error):
        return _SQLITE_REASONS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    if isinstance(error, OSError) and error.errno in _FULL_NUMBERS:
        return FULL
    if isinstance(error, OSError) and error.errno in _ERROR_NUMBERS:
        return ERROR
    if "No space left on device" in str(error):
        return FULL
    return _POSTGRESQL_REASONS.get(getattr(error, "sqlstate", None) or "")
