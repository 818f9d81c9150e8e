"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from millrace_data.domain import (
    BuiltDataset,
    Content,
    Dataset,
    DatasetSource,
    Failure,
    File,
    FilePurpose,
    FileSet,
    Progress,
    PythonStandardLibrary,
    Recipe,
    WorkState,
)


def file_values(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "tenant": file.tenant,
        "filename": file.filename,
        "purpose": file.purpose,
        "uri": file.content.uri,
        "digest": file.content.digest,
        "size_bytes": file.content.size_bytes,
        "example_count": file.example_count,
        "create_time": file.create_time,
    }


def file_of(row: Row[Any]) -> File:
    return File(
        tenant=row.tenant,
        id=row.id,
        filename=row.filename,
        purpose=FilePurpose(row.purpose),
        content=Content(row.uri, row.digest, row.size_bytes),
        example_count=row.example_count,
        create_time=row.create_time,
    )


def dataset_values(dataset: Dataset) -> dict[str, Any]:
    """Of a dataset that was just made."""
    return {
        "id": dataset.id,
        "tenant": dataset.tenant,
        "display_name": dataset.display_name,
        "source": _source_document(dataset.source),
        "recipe": asdict(dataset.recipe),
        "state": dataset.state,
        "progress": asdict(dataset.progress),
        "attempts": dataset.attempts,
        "traceparent": dataset.traceparent,
        "create_time": dataset.create_time,
        "update_time": dataset.update_time,
    }


def dataset_of(row: Row[Any]) -> Dataset:
    return Dataset(
        tenant=row.tenant,
        id=row.id,
        display_name=row.display_name,
        source=_source(row.source),
        recipe=Recipe(**row.recipe),
        create_time=row.create_time,
        update_time=row.update_time,
        state=WorkState(row.state),
        progress=Progress(**row.progress),
        built=_built(row) if row.digest else None,
        failure=Failure(row.failure_reason, row.failure_message) if row.failure_reason else None,
        attempts=row.attempts,
        traceparent=row.traceparent,
    )


def _built(row: Row[Any]) -> BuiltDataset:
    return BuiltDataset(
        content=Content(row.uri, row.digest, row.size_bytes),
        tokenizer_digest=row.tokenizer_digest,
        train_tokens=row.train_tokens,
        heldout_tokens=row.heldout_tokens,
        documents=row.documents,
    )


def _source_document(source: DatasetSource) -> dict[str, Any]:
    if isinstance(source, FileSet):
        return {"kind": "files", "file_ids": list(source.file_ids)}
    return {"kind": "python_standard_library"}


def _source(document: dict[str, Any]) -> DatasetSource:
    if document["kind"] == "files":
        return FileSet(tuple(document["file_ids"]))
    return PythonStandardLibrary()
