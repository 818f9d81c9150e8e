"""Proto messages to values of the domain and back; nothing else knows both."""

from collections.abc import Sequence

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.data.v1 import events_pb2, service_pb2, uploads_pb2
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_data.domain import (
    Content,
    Dataset,
    DatasetReady,
    DatasetSource,
    ExampleSet,
    Fact,
    Failure,
    File,
    FilePurpose,
    FileSet,
    FileUploaded,
    PythonStandardLibrary,
    Recipe,
    Upload,
    UploadPart,
    UploadState,
    WorkState,
)
from millrace_examples.report import Report
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

FILE_NAME = "tenants/{tenant}/files/{file}"
UPLOAD_NAME = "tenants/{tenant}/uploads/{upload}"
DATASET_NAME = "tenants/{tenant}/datasets/{dataset}"

_PURPOSES = {
    FilePurpose.FINE_TUNE: service_pb2.FILE_PURPOSE_FINE_TUNE,
    FilePurpose.FINE_TUNE_RESULTS: service_pb2.FILE_PURPOSE_FINE_TUNE_RESULTS,
    FilePurpose.BATCH: service_pb2.FILE_PURPOSE_BATCH,
    FilePurpose.BATCH_OUTPUT: service_pb2.FILE_PURPOSE_BATCH_OUTPUT,
    FilePurpose.USER_DATA: service_pb2.FILE_PURPOSE_USER_DATA,
}
_PURPOSE_OF = {int(number): purpose for purpose, number in _PURPOSES.items()}
_UPLOAD_STATES = {
    state: uploads_pb2.UploadState.Value(f"UPLOAD_STATE_{state.value}") for state in UploadState
}
_STATES = {state: lifecycle_pb2.WorkState.Value(f"WORK_STATE_{state.value}") for state in WorkState}


def file_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a file's name."""
    parts = names.parse(FILE_NAME, name)
    return parts["tenant"], parts["file"]


def upload_key(name: str) -> tuple[str, str]:
    """(tenant, id) of an upload's name."""
    parts = names.parse(UPLOAD_NAME, name)
    return parts["tenant"], parts["upload"]


def dataset_key(name: str) -> tuple[str, str]:
    """(tenant, id) of a dataset's name."""
    parts = names.parse(DATASET_NAME, name)
    return parts["tenant"], parts["dataset"]


def purpose_from_proto(number: int) -> FilePurpose | None:
    """None when it is unspecified."""
    return _PURPOSE_OF.get(number)


def source_from_proto(source: service_pb2.DatasetSource, tenant: str) -> DatasetSource:
    """
    Raises:
        InvalidArgument: a file belongs to another tenant.
    """
    kind = source.WhichOneof("source")
    if kind == "files":
        return FileSet(_file_ids(source.files.names, tenant, "source.files.names"))
    if kind == "examples":
        return ExampleSet(_file_ids(source.examples.names, tenant, "source.examples.names"))
    return PythonStandardLibrary()


def _file_ids(files: Sequence[str], tenant: str, field: str) -> tuple[str, ...]:
    for index, name in enumerate(files):
        if names.tenant_of(name) != tenant:
            raise InvalidArgument(f"{name} belongs to another tenant", field=f"{field}[{index}]")
    return tuple(names.last_id(name) for name in files)


def recipe_from_proto(recipe: service_pb2.DatasetRecipe) -> Recipe:
    """0 and unset mean the default."""
    default = Recipe()
    return Recipe(
        vocabulary_size=recipe.vocabulary_size or default.vocabulary_size,
        heldout_fraction=recipe.heldout_fraction or default.heldout_fraction,
        near_duplicate_threshold=(
            recipe.near_duplicate_threshold or default.near_duplicate_threshold
        ),
        maximum_bytes=recipe.maximum_bytes,
        seed=recipe.seed,
    )


def file_to_proto(file: File) -> service_pb2.File:
    message = service_pb2.File(
        name=file.name,
        filename=file.filename,
        purpose=_PURPOSES[file.purpose],
        content=content_to_proto(file.content),
        create_time=_timestamp(file.create_time.timestamp()),
        example_count=file.example_count,
    )
    if file.expire_time is not None:
        message.expire_time.CopyFrom(_timestamp(file.expire_time.timestamp()))
    if file.report is not None:
        message.report.CopyFrom(_report_to_proto(file.report))
    return message


def _report_to_proto(report: Report) -> service_pb2.ExampleReport:
    return service_pb2.ExampleReport(
        format=report.format,
        kind=report.kind,
        message_count=report.messages,
        character_count=report.characters,
        estimated_token_count=report.estimated_tokens,
        longest_line=report.longest_line,
        longest_estimated_token_count=report.longest_tokens,
        unused_fields=report.unused_fields,
    )


def upload_to_proto(upload: Upload) -> uploads_pb2.Upload:
    return uploads_pb2.Upload(
        name=upload.name,
        filename=upload.filename,
        purpose=_PURPOSES[upload.purpose],
        mime_type=upload.mime_type,
        size_bytes=upload.size_bytes,
        state=_UPLOAD_STATES[upload.state],
        create_time=_timestamp(upload.create_time.timestamp()),
        expire_time=_timestamp(upload.expire_time.timestamp()),
        file=None if upload.file is None else file_to_proto(upload.file),
    )


def part_to_proto(part: UploadPart) -> uploads_pb2.UploadPart:
    content = lifecycle_pb2.Content(digest=part.content.digest, size_bytes=part.content.size_bytes)
    return uploads_pb2.UploadPart(
        name=part.name, content=content, create_time=_timestamp(part.create_time.timestamp())
    )


def dataset_to_proto(dataset: Dataset) -> service_pb2.Dataset:
    progress = dataset.progress
    is_kept = isinstance(dataset.source, ExampleSet)  # as it is: no recipe
    message = service_pb2.Dataset(
        name=dataset.name,
        display_name=dataset.display_name,
        source=_source_to_proto(dataset),
        recipe=None if is_kept else _recipe_to_proto(dataset.recipe),
        state=_STATES[dataset.state],
        progress=lifecycle_pb2.Progress(
            phase=progress.phase,
            completed=progress.completed,
            total=progress.total,
            metrics=progress.metrics,
        ),
        create_time=_timestamp(dataset.create_time.timestamp()),
        update_time=_timestamp(dataset.update_time.timestamp()),
    )
    if dataset.failure is not None:
        message.failure.CopyFrom(_failure_to_proto(dataset.failure))
    if dataset.built is not None:
        message.content.CopyFrom(content_to_proto(dataset.built.content))
        message.tokenizer_digest = dataset.built.tokenizer_digest
        message.train_tokens = dataset.built.train_tokens
        message.heldout_tokens = dataset.built.heldout_tokens
        message.documents.update(dataset.built.documents)
    return message


def fact_to_proto(fact: Fact) -> Message:
    """The data of the fact's CloudEvent."""
    if isinstance(fact, FileUploaded):
        file = fact.file
        return events_pb2.FileUploaded(
            file=file.name, filename=file.filename, content=content_to_proto(file.content)
        )
    dataset = fact.dataset
    if isinstance(fact, DatasetReady):
        built = dataset.built
        assert built is not None, "a dataset that is ready has been built"
        return events_pb2.DatasetReady(
            dataset=dataset.name,
            content=content_to_proto(built.content),
            tokenizer_digest=built.tokenizer_digest,
            train_tokens=built.train_tokens,
            heldout_tokens=built.heldout_tokens,
        )
    assert dataset.failure is not None, "a dataset that failed says why"
    return events_pb2.DatasetFailed(
        dataset=dataset.name, failure=_failure_to_proto(dataset.failure)
    )


def content_to_proto(content: Content) -> lifecycle_pb2.Content:
    return lifecycle_pb2.Content(
        uri=content.uri, digest=content.digest, size_bytes=content.size_bytes
    )


def _failure_to_proto(failure: Failure) -> lifecycle_pb2.Failure:
    return lifecycle_pb2.Failure(reason=failure.reason, message=failure.message)


def _source_to_proto(dataset: Dataset) -> service_pb2.DatasetSource:
    source = dataset.source
    if isinstance(source, FileSet | ExampleSet):
        found = [f"tenants/{dataset.tenant}/files/{id}" for id in source.file_ids]
        if isinstance(source, ExampleSet):
            return service_pb2.DatasetSource(examples=service_pb2.ExampleSet(names=found))
        return service_pb2.DatasetSource(files=service_pb2.FileSet(names=found))
    return service_pb2.DatasetSource(python_standard_library=service_pb2.PythonStandardLibrary())


def _recipe_to_proto(recipe: Recipe) -> service_pb2.DatasetRecipe:
    return service_pb2.DatasetRecipe(
        vocabulary_size=recipe.vocabulary_size,
        heldout_fraction=recipe.heldout_fraction,
        near_duplicate_threshold=recipe.near_duplicate_threshold,
        maximum_bytes=recipe.maximum_bytes,
        seed=recipe.seed,
    )


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e6) * 1000)
    return stamp
