"""Where a dataset's documents come from: the standard library, or files that a user uploaded.

A document has a form, which decides the quality rules that make sense for it:

``code``   a source file
``prose``  anything else that is plain text
``chat``   a conversation, rendered as the tokenizer's chat template renders it

Nothing is skipped silently: a document that cannot be read is counted under its reason when
the source is ours (the standard library), and is a ``JobError`` that names file and line when
it is the user's.
"""

import hashlib
import json
import os
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from millrace_examples import openai_chat
from millrace_examples.messages import normal_messages
from millrace_examples.row_hash import row_hash
from millrace_examples.rows import row_of_line
from millrace_examples.values import flaws, is_encodable
from millrace_runtime.jobs import JobError
from millrace_runtime.manifest import sha256_file

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
Form = Literal["code", "prose", "chat"]

_NOT_STANDARD_LIBRARY = frozenset(("site-packages", "dist-packages", "__pycache__"))
_CODE_SUFFIX = re.compile(
    r"\.(c|cc|cpp|cs|css|go|h|hpp|html|java|js|kt|lua|php|pl|proto|pyi?|r|rb|rs|scala|sh|sql|swift|tsx?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """One text to learn from.

    Attributes:
        origin: where it was read, for people: ``asyncio/tasks.py`` or ``corpus.jsonl:12``.
        segments: ``code`` and ``prose``: the one text. ``chat``: ``role\\ncontent`` for each turn.
            Kept apart so that markers in a user's text never become special tokens.
        row_hash: of the row as it was read (``millrace_examples.row_hash``); empty: of none.
    """

    origin: str
    form: Form
    segments: tuple[str, ...]
    row_hash: bytes = b""

    @cached_property
    def text(self) -> str:
        if self.form != "chat":
            return self.segments[0]
        return "".join(f"{START_OF_TURN}{turn}{END_OF_TURN}\n" for turn in self.segments)

    @cached_property
    def size_bytes(self) -> int:
        return len(self.text.encode("utf-8"))

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the text as UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


class StandardLibrary(BaseModel):
    """The ``.py`` files of the running Python's standard library.

    Attributes:
        include_test_package: also CPython's own test suite (``test``, another 17 MB), which
            Linux distributions mostly leave out, so leaving it out is the same corpus everywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["standard_library"] = "standard_library"
    include_test_package: bool = False


class InputFile(BaseModel):
    """A file to read; ``name`` is what its user calls it and appears in errors and origins."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.path.name


class LocalFiles(BaseModel):
    """JSONL with ``text`` or with OpenAI chat ``messages``, or plain text: told by content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["files"] = "files"
    files: tuple[InputFile, ...] = Field(min_length=1)


Source = Annotated[StandardLibrary | LocalFiles, Field(discriminator="kind")]


@dataclass
class Corpus:
    """What was read. ``unreadable`` counts documents by the reason that kept them out."""

    documents: list[Document] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    size_bytes: int = 0
    reached_maximum: bool = False


def read(source: StandardLibrary | LocalFiles, maximum_bytes: int | None, seed: int) -> Corpus:
    """Read ``source`` until it ends or ``maximum_bytes`` of text are held.

    The standard library is read in an order drawn from ``seed``, so that a cap takes a sample
    of all packages and not the first letters of the alphabet.

    Raises:
        JobError: FILE_NOT_FOUND, INVALID_FILE (naming file, line and field).
    """
    corpus = Corpus()
    if isinstance(source, StandardLibrary):
        found = _standard_library_documents(source, seed, corpus.unreadable)
    else:
        found = (document for file in source.files for document in file_documents(file))
    for document in found:
        if maximum_bytes is not None and corpus.size_bytes + document.size_bytes > maximum_bytes:
            corpus.reached_maximum = True
            break
        corpus.documents.append(document)
        corpus.size_bytes += document.size_bytes
    return corpus


def describe(source: StandardLibrary | LocalFiles) -> dict[str, Any]:
    """The source for a manifest: what identifies its content, and no path of this machine.

    Raises:
        JobError: FILE_NOT_FOUND.
    """
    if isinstance(source, StandardLibrary):
        return {**source.model_dump(mode="json"), "python_version": platform.python_version()}
    files = [{"name": f.label, "sha256": sha256_file(_existing(f))} for f in source.files]
    return {"kind": source.kind, "files": files}


def standard_library_files(include_test_package: bool = False) -> list[tuple[str, Path]]:
    """(path within the library in POSIX form, path) of every ``.py`` file, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        excluded = set(_NOT_STANDARD_LIBRARY)
        if here == root and not include_test_package:
            excluded.add("test")  # at the top it is CPython's own suite
        subfolders[:] = [name for name in subfolders if name not in excluded]
        found += [here / name for name in names if name.endswith(".py") and (here / name).is_file()]
    return sorted((path.relative_to(root).as_posix(), path) for path in found)


def _standard_library_documents(
    source: StandardLibrary, seed: int, unreadable: Counter[str]
) -> Iterator[Document]:
    files = standard_library_files(source.include_test_package)
    for origin, path in sorted(files, key=lambda file: seeded_order(seed, file[0])):
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            unreadable["not_utf8"] += 1
            continue
        yield Document(origin, "code", (text,), row_hash(text))


def seeded_order(seed: int, key: str) -> bytes:
    """A sort key that shuffles the same way for the same ``seed``, whatever else is sorted."""
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()


def file_documents(file: InputFile) -> Iterator[Document]:
    """The documents of one file, in the order of its lines.

    Raises:
        JobError: FILE_NOT_FOUND, INVALID_FILE.
    """
    path = _existing(file)
    key = _jsonl_key(file)
    if key == "messages":
        yield from _chat_documents(file.label, path)
    elif key == "text":
        yield from _text_documents(file.label, path)
    else:
        form: Form = "code" if _CODE_SUFFIX.fullmatch(Path(file.label).suffix) else "prose"
        text = _plain_text(file.label, path)
        yield Document(file.label, form, (text,), row_hash(text))


def _existing(file: InputFile) -> Path:
    if not file.path.is_file():
        raise JobError("FILE_NOT_FOUND", f"{file.label}: there is no file at {file.path}")
    return file.path


def _jsonl_key(file: InputFile) -> Literal["text", "messages"] | None:
    """The key that holds the text of each line, or None for plain text.

    The first line that is not blank decides: a JSON object makes the file JSONL.
    """
    named_jsonl = Path(file.label).suffix.lower() in (".jsonl", ".ndjson")
    number, line = _first_line(file.path)
    try:
        first = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if named_jsonl:
            raise _invalid(file.label, number, f"is not JSON: {error}") from error
        return None
    if not isinstance(first, dict):
        if named_jsonl:
            raise _invalid(file.label, number, "must be a JSON object")
        return None
    if "messages" in first:
        return "messages"
    if "text" in first or named_jsonl:
        return "text"
    return None


def _first_line(path: Path) -> tuple[int, bytes]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                return number, line
    return 1, b""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line


def _text_documents(label: str, path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _invalid(label, number, f"is not JSON: {error}") from error
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise _invalid(label, number, 'must be a JSON object with a string in "text"')
        if not is_encodable(text):
            raise _invalid(label, number, "text: has half a surrogate pair, which is no character")
        yield Document(f"{label}:{number}", "prose", (text,), row_hash(text))


def _chat_documents(label: str, path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        row = row_of_line(number, line)
        if row.problem:
            raise _invalid(label, number, row.problem)
        for place, problem in (*flaws(row.value), *openai_chat.FORMAT.mistakes(row.value)):
            raise _invalid(label, number, f"{place}: {problem}")
        turns = tuple(turn_text(message) for message in normal_messages(row.value["messages"]))
        yield Document(f"{label}:{number}", "chat", turns, row_hash(row.value))


def turn_text(message: dict[str, Any]) -> str:
    """One message as the chat template renders it between its markers."""
    calls = "".join(
        f'\n<tool_call>\n{{"name": "{call["function"]["name"]}", '
        f'"arguments": {call["function"]["arguments"]}}}\n</tool_call>'
        for call in message.get("tool_calls") or ()
    )
    return f"{message['role']}\n{message.get('content') or ''}{calls}"


def _plain_text(label: str, path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _invalid(label, line, f"is not UTF-8 (byte {error.start} of the file)") from error


def _invalid(label: str, line: int, message: str) -> JobError:
    return JobError("INVALID_FILE", f"{label}: line {line}: {message}")
