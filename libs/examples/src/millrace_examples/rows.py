"""The rows of a training file: JSON lines or array, parquet, or the pieces of a plain text.

Memory is bounded by ``MAXIMUM_LINE_BYTES``, and for parquet by ``MAXIMUM_GROUP_BYTES``.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from millrace_examples.json_array import BrokenArray, array_values, no_constant
from millrace_examples.values import Row, kind_of

MAXIMUM_LINE_BYTES = 4 * 1024 * 1024
MAXIMUM_GROUP_BYTES = 1024 * 1024 * 1024  # of a row group, uncompressed
TEXT_PIECE_BYTES = 64 * 1024
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 64
_TEXT_SUFFIXES = (".txt", ".md")
_HEAD_BYTES = 64 * 1024
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{")


class Container(Enum):
    JSONL = "JSON lines"
    ARRAY = "a JSON array"
    PARQUET = "parquet"
    TEXT = "plain text"


@dataclass(frozen=True)
class ReadRow:
    """A row that is an object in ``value``, or what is wrong with it; ``line`` counts from 1."""

    line: int
    value: Row
    problem: str = ""


class Unreadable(Exception):
    """The file as a whole cannot be read; says why."""


def container_of(path: Path, filename: str = "", *, wants_text: bool = False) -> Container:
    """What ``path`` is. Parquet and an array of objects are told by their bytes.

    Where plain text may be meant, by the file's name or because it is what a job reads (a
    content-addressed file has lost its name), a beginning that is no JSON object makes it text.
    """
    with path.open("rb") as stream:
        if _is_parquet(stream):
            return Container.PARQUET
        head = stream.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if _ARRAY_OF_OBJECTS.match(head):
        return Container.ARRAY
    may_be_text = wants_text or Path(filename).suffix.lower() in _TEXT_SUFFIXES
    return Container.TEXT if may_be_text and not head.startswith(b"{") else Container.JSONL


def rows_of(path: Path, container: Container) -> Iterator[ReadRow]:
    """Every row that is not blank.

    Raises:
        Unreadable: parquet that is damaged or too large; text that is not UTF-8.
    """
    if container is Container.PARQUET:
        yield from _parquet_rows(path)
        return
    with path.open("rb") as stream:
        if container is Container.TEXT:
            yield from _text_rows(stream)
            return
        if container is Container.ARRAY:
            yield from _array_rows(stream)
            return
        for number, line in enumerate(bounded_lines(stream), start=1):
            if line.strip():
                yield row_of_line(number, line)


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of ``stream``; of one longer than ``MAXIMUM_LINE_BYTES`` only the beginning.

    So a file without newlines costs no more memory than the longest line that is allowed.
    """
    while line := stream.readline(MAXIMUM_LINE_BYTES + 1):
        yield line
        while len(line) > MAXIMUM_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAXIMUM_LINE_BYTES + 1)


def row_of_line(number: int, line: bytes) -> ReadRow:
    """One line, which must be UTF-8 and a JSON object."""
    if len(line) > MAXIMUM_LINE_BYTES:
        return ReadRow(number, {}, f"is longer than {MAXIMUM_LINE_BYTES} bytes")
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        value = json.loads(line.rstrip().decode("utf-8"), parse_constant=no_constant)
    except UnicodeDecodeError as error:
        return ReadRow(number, {}, f"is not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        where = f"{error.msg} (character {error.pos + 1})"
        return ReadRow(number, {}, f"is not JSON: {where}{_array_hint(line)}")
    except (ValueError, RecursionError) as error:
        return ReadRow(number, {}, f"is not JSON: {error}{_array_hint(line)}")
    if not isinstance(value, dict):
        problem = f"must be a JSON object, not {kind_of(value)}{_array_hint(line)}"
        return ReadRow(number, {}, problem)
    return ReadRow(number, value)


def _array_hint(line: bytes) -> str:
    is_array = line.lstrip().startswith(b"[")
    return "; write one object a line (jq -c '.[]' FILE)" if is_array else ""


def _array_rows(stream: BinaryIO) -> Iterator[ReadRow]:
    """What follows a mistake in the array itself cannot be told, and is not read."""
    try:
        for line, value in array_values(stream, MAXIMUM_LINE_BYTES):
            if isinstance(value, dict):
                yield ReadRow(line, value)
            else:
                yield ReadRow(line, {}, f"must be a JSON object, not {kind_of(value)}")
    except BrokenArray as error:
        yield ReadRow(error.line, {}, str(error))


def _is_parquet(stream: BinaryIO) -> bool:
    """Whether both ends bear the magic bytes; leaves ``stream`` at its start."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - len(_PARQUET_MAGIC)))
    end = stream.read()
    stream.seek(0)
    start = stream.read(len(_PARQUET_MAGIC))
    stream.seek(0)
    return size >= 3 * len(_PARQUET_MAGIC) and start == end == _PARQUET_MAGIC


def _parquet_rows(path: Path) -> Iterator[ReadRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise Unreadable(
            "is parquet, which needs pyarrow to be installed; send JSON lines"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            _require_bounded(file.metadata)
            line = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for value in batch.to_pylist():
                    line += 1
                    yield ReadRow(line, without_nulls(value))
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        raise Unreadable(f"is parquet that cannot be read: {error}") from None


def _require_bounded(metadata: Any) -> None:
    for index in range(metadata.num_row_groups):
        if metadata.row_group(index).total_byte_size > MAXIMUM_GROUP_BYTES:
            message = f"has a row group of more than {MAXIMUM_GROUP_BYTES} bytes"
            raise Unreadable(f"{message}; write it with smaller ones")


def without_nulls(value: Any) -> Any:
    """Objects without the fields that are null: a column holds every field of every row."""
    if isinstance(value, dict):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    if isinstance(value, list):
        return [without_nulls(held) for held in value]
    return value


def _text_rows(stream: BinaryIO) -> Iterator[ReadRow]:
    """A text in pieces that make it up again, cut between paragraphs where that can be.

    A piece ends at the first blank line after ``TEXT_PIECE_BYTES``, and at twice that anyway.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    piece, size, first, number = "", 0, 1, 0
    while line := stream.readline(TEXT_PIECE_BYTES):
        number += not piece or piece.endswith("\n")
        try:
            piece += decoder.decode(line)
        except UnicodeDecodeError:
            raise Unreadable(f"line {number} is not UTF-8") from None
        size += len(line)
        at_paragraph = size >= TEXT_PIECE_BYTES and not line.strip()
        if at_paragraph or size >= 2 * TEXT_PIECE_BYTES:
            if piece.strip():
                yield ReadRow(first, {"text": piece})
            piece, size, first = "", 0, number + 1
    if decoder.getstate()[0]:
        raise Unreadable(f"line {number} is not UTF-8")
    if piece.strip():
        yield ReadRow(first, {"text": piece})
