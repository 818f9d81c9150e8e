"""Rows of the service's tables as values of its domain, and back."""

from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from millrace_data.domain import (
    BuiltDataset,
    Content,
    Dataset,
    DatasetSource,
    ExampleSet,
    Failure,
    File,
    FilePurpose,
    FileSet,
    Progress,
    PythonStandardLibrary,
    Recipe,
    Upload,
    UploadPart,
    UploadState,
    WorkState,
)
from millrace_examples.report import Report


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
        "expire_time": file.expire_time,
        "report": None if file.report is None else asdict(file.report),
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
        expire_time=row.expire_time,
        report=_report(row.report) if row.report else None,
    )


def _report(document: dict[str, Any]) -> Report:
    """Of a file that was kept, and so without problems."""
    unused = tuple(document["unused_fields"])
    return Report(**{**document, "unused_fields": unused, "problems": ()})


def upload_values(upload: Upload) -> dict[str, Any]:
    """Of an upload that was just made."""
    return {
        "id": upload.id,
        "tenant": upload.tenant,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "mime_type": upload.mime_type,
        "size_bytes": upload.size_bytes,
        "file_expire_seconds": upload.file_expire_seconds,
        "state": upload.state,
        "create_time": upload.create_time,
        "update_time": upload.create_time,
        "expire_time": upload.expire_time,
    }


def upload_of(row: Row[Any], file: File | None = None) -> Upload:
    return Upload(
        tenant=row.tenant,
        id=row.id,
        filename=row.filename,
        purpose=FilePurpose(row.purpose),
        mime_type=row.mime_type,
        size_bytes=row.size_bytes,
        create_time=row.create_time,
        expire_time=row.expire_time,
        file_expire_seconds=row.file_expire_seconds,
        state=UploadState(row.state),
        part_ids=tuple(row.part_ids or ()),
        md5=row.md5 or "",
        file=file,
    )


def part_values(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "tenant": part.tenant,
        "upload_id": part.upload_id,
        "uri": part.content.uri,
        "digest": part.content.digest,
        "size_bytes": part.content.size_bytes,
        "create_time": part.create_time,
    }


def part_of(row: Row[Any]) -> UploadPart:
    return UploadPart(
        tenant=row.tenant,
        upload_id=row.upload_id,
        id=row.id,
        content=Content(row.uri, row.digest, row.size_bytes),
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
    if isinstance(source, ExampleSet):
        return {"kind": "examples", "file_ids": list(source.file_ids)}
    return {"kind": "python_standard_library"}


def _source(document: dict[str, Any]) -> DatasetSource:
    if document["kind"] == "files":
        return FileSet(tuple(document["file_ids"]))
    if document["kind"] == "examples":
        return ExampleSet(tuple(document["file_ids"]))
    return PythonStandardLibrary()
