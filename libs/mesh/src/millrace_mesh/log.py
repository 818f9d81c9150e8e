"""The mesh's log: a file a process, one file of all, and one readable stream.

Files are bounded: each is renamed to ``.1`` when it is full, and there is one such.
"""

import logging
import os
import re
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

MESH = "mesh"
FILE_LIMIT_BYTES = 10 * 1024 * 1024
_PALETTE = (36, 33, 32, 35, 34, 96, 93, 92, 95)  # ANSI foregrounds, told apart on dark and light
_DATE = re.compile(r"^\d{4}-\d\d-\d\d ")  # the day is known to who watches
_TABLE = re.compile(r"^(\+[-=]+[+]|\| )")  # Triton draws wide ones; the files have them
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|\[(ERR|FTL)\]|^E\d{4} ")
_WARNING = re.compile(r"\bWARNING\b|\[WRN\]|^W\d{4} ")


class MeshLog:
    """Takes whole lines of every process."""

    def __init__(self, directory: Path, names: list[str], stream: TextIO | None) -> None:
        """``stream`` is watched by a person; ``None`` when nobody watches."""
        directory.mkdir(parents=True, exist_ok=True)
        self._all = _bounded(directory / f"{MESH}.log")
        self._files = {name: _bounded(directory / f"{name}.log") for name in names}
        self._stream = stream
        self._width = max(len(name) for name in [*names, MESH])
        self._colors = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}
        self._colored = stream is not None and stream.isatty() and "NO_COLOR" not in os.environ

    def write(self, name: str, line: str) -> None:
        """One line of one process, without its newline."""
        if name in self._files:
            self._files[name].emit(_record(line))
        self._all.emit(_record(f"{name:<{self._width}} | {line}"))
        if self._stream is not None and not _TABLE.match(line):
            self._show(self._stream, name, line)

    def say(self, line: str) -> None:
        """One line of the supervisor's own."""
        self.write(MESH, line)

    def close(self) -> None:
        for handler in (self._all, *self._files.values()):
            handler.close()

    def _show(self, stream: TextIO, name: str, line: str) -> None:
        text = _DATE.sub("", line)
        label = f"{name:<{self._width}}"
        if self._colored:
            label = f"\033[1;{self._colors.get(name, 37)}m{label}\033[0m"
            text = _colored_by_level(text)
        try:
            stream.write(f"{label} | {text}\n")
            stream.flush()
        except (BrokenPipeError, OSError):
            self._stream = None  # who watched has gone; the files go on


def watched_stream() -> TextIO | None:
    """Standard output when somebody reads it."""
    return sys.stdout if sys.stdout is not None and not sys.stdout.closed else None


def _colored_by_level(text: str) -> str:
    if _ERROR.search(text):
        return f"\033[31m{text}\033[0m"
    if _WARNING.search(text):
        return f"\033[33m{text}\033[0m"
    return text


def _bounded(path: Path) -> RotatingFileHandler:
    handler = RotatingFileHandler(path, maxBytes=FILE_LIMIT_BYTES, backupCount=1)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def _record(line: str) -> logging.LogRecord:
    return logging.LogRecord("", logging.INFO, "", 0, line, None, None)
