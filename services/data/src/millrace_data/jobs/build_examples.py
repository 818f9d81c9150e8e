"""Build a dataset of examples: ``python -m millrace_data.jobs.build_examples``.

The distinct examples of several files of one format, as JSON Lines in the order of their own
hashes: the same examples give the same bytes, however they were spread over files.

    train.jsonl        one example a line
    rows-train.sha256  the hashes of the rows that they were (``row_index``)

Reasons of failure: FILE_NOT_FOUND, INVALID_FILE, OUTPUT_EXISTS, INVALID_SPEC.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from millrace_data.jobs.build_dataset import committed, sweep
from millrace_data.row_index import TRAIN_FILE, write_index
from millrace_examples import report as examples
from millrace_examples.row_hash import row_hash
from millrace_examples.rows import Unreadable, container_of, rows_of
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter

KIND = "examples"
FILE_NAME = "train.jsonl"


class Input(BaseModel):
    """One file; ``name`` is what its user called it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    name: str


@dataclass(frozen=True)
class Line:
    """An example as it is written, and what it is known by."""

    text: str
    row_hash: bytes


class Spec(BaseModel):
    """``output_path`` is the directory that the dataset is committed as."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_id: str = Field(min_length=1)
    output_path: Path
    files: tuple[Input, ...] = Field(min_length=1)


def work(spec: Spec, reporter: Reporter) -> None:
    """Build and commit the dataset, or find it committed already; report the result."""
    sweep(spec.output_path)
    identity = {"files": sorted(_digest(file) for file in spec.files)}
    digest = committed(spec.output_path, identity) or build(spec, identity, reporter)
    found, _ = manifest.read(spec.output_path)
    reporter.report(
        "result",
        path=str(spec.output_path),
        digest=digest,
        size_bytes=found.size_bytes,
        metadata=found.metadata,
    )


def _digest(file: Input) -> str:
    if not file.path.is_file():
        raise JobError("FILE_NOT_FOUND", f"{file.name} is not there; upload it again")
    return manifest.sha256_file(file.path)


def build(spec: Spec, identity: dict[str, Any], reporter: Reporter) -> str:
    """Make and commit the dataset; return its digest.

    Raises:
        JobError: INVALID_FILE.
    """
    lines: dict[str, Line] = {}
    read = 0
    for completed, file in enumerate(spec.files, start=1):
        read += collect(file, lines)
        reporter.progress("read", completed, len(spec.files))
    temporary = manifest.temporary_sibling(spec.output_path)
    try:
        path = temporary / FILE_NAME
        with path.open("w", encoding="utf-8") as stream:
            stream.writelines(lines[key].text for key in sorted(lines))
        write_index(temporary / TRAIN_FILE, (line.row_hash for line in lines.values()))
        found = examples.check(path)
        if not found.is_valid:
            raise JobError("INVALID_FILE", f"of the examples together: {found.problems[0]}")
        metadata = {
            "format": found.format,
            "kind": found.kind,
            "estimated_tokens": found.estimated_tokens,
            "documents": {
                "read": read,
                "exact_duplicates": read - len(lines),
                "kept_train": len(lines),
            },
            **identity,
        }
        return manifest.commit(temporary, spec.output_path, KIND, metadata)
    finally:
        manifest.remove_tree(temporary)


def collect(file: Input, lines: dict[str, Line]) -> int:
    """Add the examples of a file to ``lines``, by their hashes; how many it has.

    Values that JSON has no form for, in columns that no format reads, become text.
    """
    count = 0
    try:
        for row in rows_of(file.path, container_of(file.path, file.name)):
            if row.problem:
                raise JobError("INVALID_FILE", f"{file.name}, line {row.line}: {row.problem}")
            line = json.dumps(row.value, ensure_ascii=False, sort_keys=True, default=str)
            key = manifest.sha256_bytes(line.encode())
            lines.setdefault(key, Line(line + "\n", row_hash(row.value)))
            count += 1
    except Unreadable as error:
        raise JobError("INVALID_FILE", f"{file.name}: {error}") from error
    return count


if __name__ == "__main__":
    jobs.run("data.build_examples", Spec, work, lambda spec: spec.output_path.parent)
