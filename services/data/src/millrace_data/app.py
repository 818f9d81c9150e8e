"""What the service does, whoever asks: files and datasets of tenants."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeVar

from millrace_data.domain import (
    Content,
    Dataset,
    DatasetSource,
    ExampleSet,
    File,
    FilePurpose,
    FileSet,
    Recipe,
    RequestKey,
    UploadPart,
    WorkState,
    utc_now,
)
from millrace_examples.report import Report, check
from millrace_runtime import names, paging, telemetry
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.manifest import sha256_bytes

UPLOAD_GRACE = timedelta(hours=1)
_SHOWN_PROBLEMS = 5
Resource = TypeVar("Resource", File, UploadPart, Dataset)


@dataclass(frozen=True)
class StagedFile:
    """Bytes that have come in whole and are on disk, but not yet in place."""

    path: Path
    digest: str
    size_bytes: int


class Files(Protocol):
    """Rows of files (``store.FileStore``)."""

    def announce(self, file: File, request: RequestKey) -> File: ...
    def make_available(self, file: File, uri: str, traceparent: str) -> File: ...
    def get(self, tenant: str, id: str) -> File | None: ...
    def page(
        self,
        tenant: str,
        last_id: str,
        count: int,
        purpose: FilePurpose | None,
        oldest_first: bool,
    ) -> list[File]: ...
    def mark_deleted(self, tenant: str, id: str) -> str | None: ...
    def expire(self) -> None: ...
    def abandon_pending(self, before: datetime) -> None: ...
    def unused_digests(self) -> list[str]: ...
    def remove_bytes(self, digest: str, remove: Callable[[], None]) -> bool: ...


class Datasets(Protocol):
    """Rows of datasets (``store.DatasetStore``)."""

    def add(self, dataset: Dataset, request: RequestKey) -> Dataset: ...
    def get(self, tenant: str, id: str) -> Dataset | None: ...
    def page(self, tenant: str, before_id: str, count: int) -> list[Dataset]: ...
    def cancel(self, tenant: str, id: str) -> Dataset | None: ...


class Bytes(Protocol):
    """Bytes of files (``file_bytes.FileBytes``)."""

    def staged(self, chunks: Iterable[bytes]) -> AbstractContextManager[StagedFile]: ...
    def put_in_place(self, staged: StagedFile) -> str: ...
    def open(self, content: Content) -> Path: ...
    def read(self, content: Content) -> Iterator[bytes]: ...
    def remove(self, digest: str) -> None: ...
    def sweep(self, older_than_seconds: float) -> None: ...


class Rows(Protocol):
    """Which rows files hold (``row_keeping.RowKeeper``)."""

    def keep(self, path: Path, filename: str, digest: str) -> None: ...
    def sweep(self, older_than_seconds: float) -> None: ...


class FileApp:
    """Uploads, and what may be asked of them."""

    def __init__(
        self,
        files: Files,
        stored: Bytes,
        *,
        rows: Rows,
        ring: Callable[[], None],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._files = files
        self._bytes = stored
        self._rows = rows
        self._ring = ring
        self._now = now

    def upload(
        self,
        tenant: str,
        filename: str,
        purpose: FilePurpose,
        request_id: str,
        chunks: Iterable[bytes],
        expire_seconds: int | None = None,
    ) -> File:
        """Store a file; nothing is kept of one that is refused.

        Raises:
            InvalidArgument: FILE_TOO_LARGE, FILE_EMPTY, INVALID_FILE (naming line and field).
            AlreadyExists: the request id was used for another file.
            OSError: the disk is full or fails.
        """
        file, uri = self.take_in(tenant, filename, purpose, request_id, chunks, expire_seconds)
        file = self._files.make_available(file, uri, telemetry.current_traceparent())
        self._ring()
        return file

    def take_in(
        self,
        tenant: str,
        filename: str,
        purpose: FilePurpose,
        request_id: str,
        chunks: Iterable[bytes],
        expire_seconds: int | None,
    ) -> tuple[File, str]:
        """A checked file with its bytes in place, not shown yet, and their URI.

        What is not shown within ``UPLOAD_GRACE`` is given up. Raises as ``upload`` does.
        """
        with self._bytes.staged(chunks) as staged:
            is_learnt = purpose == FilePurpose.FINE_TUNE
            report = check_examples(staged, filename) if is_learnt else None
            if is_learnt:
                self._rows.keep(staged.path, filename, staged.digest)
            file = File(
                tenant=tenant,
                id=names.new_id("file"),
                filename=filename,
                purpose=purpose,
                content=Content("", staged.digest, staged.size_bytes),
                example_count=report.examples if report else 0,
                create_time=self._now(),
                expire_time=self._end_after(expire_seconds),
                report=report,
            )
            content = f"{filename}\0{purpose}\0{staged.digest}"
            if expire_seconds is not None:
                content += f"\0{expire_seconds}"
            request = RequestKey(request_id, sha256_bytes(content.encode()))
            file = self._files.announce(file, request)
            return file, self._bytes.put_in_place(staged)

    def _end_after(self, seconds: int | None) -> datetime | None:
        return None if seconds is None else self._now() + timedelta(seconds=seconds)

    def get(self, tenant: str, id: str) -> File:
        """
        Raises:
            NotFound
        """
        file = self._files.get(tenant, id)
        if file is None:
            raise NotFound(f"there is no file {id}")
        return file

    def page(
        self,
        tenant: str,
        page_size: int,
        page_token: str,
        purpose: FilePurpose | None,
        oldest_first: bool = False,
    ) -> tuple[list[File], str]:
        """Files, newest first or oldest, and the token of the next page (empty: the last)."""
        count = paging.page_size(page_size)
        last = paging.decode_token(page_token)
        found = self._files.page(tenant, last, count + 1, purpose, oldest_first)
        return next_page(found, count)

    def read(self, tenant: str, id: str) -> Iterator[bytes]:
        """The bytes, verified before the first of them.

        Raises:
            NotFound
            FailedPrecondition: CONTENT_DAMAGED.
        """
        return self._bytes.read(self.get(tenant, id).content)

    def delete(self, tenant: str, id: str) -> None:
        """Hide the file, and remove its bytes unless another file has the same.

        Raises:
            NotFound
        """
        digest = self._files.mark_deleted(tenant, id)
        if digest is None:
            raise NotFound(f"there is no file {id}")
        self._remove_if_unused(digest)

    def reconcile(self) -> None:
        """End what has expired or was never finished, and remove bytes that no file needs."""
        self._files.expire()
        self._files.abandon_pending(self._now() - UPLOAD_GRACE)
        for digest in self._files.unused_digests():
            self._remove_if_unused(digest)
        self._bytes.sweep(UPLOAD_GRACE.total_seconds())
        self._rows.sweep(UPLOAD_GRACE.total_seconds())

    def _remove_if_unused(self, digest: str) -> None:
        self._files.remove_bytes(digest, lambda: self._bytes.remove(digest))


class DatasetApp:
    """Datasets, from the wish for one to its end."""

    def __init__(
        self,
        datasets: Datasets,
        files: Files,
        *,
        ring: Callable[[], None],
        ring_builders: Sequence[Callable[[], None]],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._datasets = datasets
        self._files = files
        self._ring = ring
        self._ring_builders = ring_builders
        self._now = now

    def create(
        self,
        tenant: str,
        display_name: str,
        source: DatasetSource,
        recipe: Recipe,
        request: RequestKey,
    ) -> Dataset:
        """Ask for a dataset; it is QUEUED.

        Raises:
            InvalidArgument: a file of the source does not exist; of examples, FILE_PURPOSE,
                MIXED_FORMATS, or a recipe, which they have no use for.
            AlreadyExists: the request id was used for another request.
        """
        if isinstance(source, FileSet):
            self._require_files(tenant, source.file_ids, "source.files.names")
        elif isinstance(source, ExampleSet):
            found = self._require_files(tenant, source.file_ids, "source.examples.names")
            require_alike(found)
            if recipe != Recipe():
                raise InvalidArgument("examples are kept as they are", field="recipe")
        now = self._now()
        dataset = Dataset(
            tenant=tenant,
            id=names.new_id("dataset"),
            display_name=display_name,
            source=source,
            recipe=recipe,
            create_time=now,
            update_time=now,
            traceparent=telemetry.current_traceparent(),
        )
        dataset = self._datasets.add(dataset, request)
        for ring_builder in self._ring_builders:
            ring_builder()
        return dataset

    def _require_files(self, tenant: str, ids: Sequence[str], field: str) -> list[File]:
        found = []
        for index, id in enumerate(ids):
            file = self._files.get(tenant, id)
            if file is None:
                raise InvalidArgument(
                    f"there is no file {id}; upload it first",
                    reason="FILE_NOT_FOUND",
                    field=f"{field}[{index}]",
                )
            found.append(file)
        return found

    def get(self, tenant: str, id: str) -> Dataset:
        """
        Raises:
            NotFound
        """
        dataset = self._datasets.get(tenant, id)
        if dataset is None:
            raise NotFound(f"there is no dataset {id}")
        return dataset

    def page(self, tenant: str, page_size: int, page_token: str) -> tuple[list[Dataset], str]:
        """Datasets, newest first, and the token of the next page (empty: this is the last)."""
        count = paging.page_size(page_size)
        before = paging.decode_token(page_token)
        return next_page(self._datasets.page(tenant, before, count + 1), count)

    def cancel(self, tenant: str, id: str) -> Dataset:
        """Stop a dataset that is not finished; cancelling twice is once.

        Raises:
            NotFound
            FailedPrecondition: it has SUCCEEDED or FAILED already.
        """
        dataset = self._datasets.cancel(tenant, id)
        if dataset is None:
            raise NotFound(f"there is no dataset {id}")
        if dataset.state != WorkState.CANCELLED:
            raise FailedPrecondition(
                f"dataset {id} has {dataset.state} already and cannot be cancelled",
                reason="DATASET_FINISHED",
            )
        self._ring()
        return dataset


def check_examples(staged: StagedFile, filename: str) -> Report:
    """What a file for fine-tuning holds.

    Raises:
        InvalidArgument: INVALID_FILE, naming the first lines and fields that are wrong.
    """
    report = check(staged.path, filename)
    if not report.is_valid:
        raise InvalidArgument(
            f"{filename}: {describe_problems(report)}", reason="INVALID_FILE", field="file"
        )
    return report


def describe_problems(report: Report) -> str:
    """The first problems of a file, in one line."""
    shown = "; ".join(str(problem) for problem in report.problems[:_SHOWN_PROBLEMS])
    more = len(report.problems) - _SHOWN_PROBLEMS
    return f"{shown}; and {more} or more others" if more > 0 else shown


def require_alike(files: Sequence[File]) -> None:
    """That files can make one dataset of examples.

    Raises:
        InvalidArgument: FILE_PURPOSE, MIXED_FORMATS; naming the first file at fault.
    """
    formats = [file.report.format if file.report else "" for file in files]
    for index, file in enumerate(files):
        field = f"source.examples.names[{index}]"
        if file.purpose != FilePurpose.FINE_TUNE:
            message = f"{file.id} was uploaded for another purpose than 'fine-tune'"
            raise InvalidArgument(message, reason="FILE_PURPOSE", field=field)
        if formats[index] != formats[0]:
            message = (
                f"{file.id} is in the format {formats[index] or 'unknown'}, {files[0].id} in "
                f"{formats[0] or 'unknown'}; a dataset has one"
            )
            raise InvalidArgument(message, reason="MIXED_FORMATS", field=field)


def next_page(found: list[Resource], count: int) -> tuple[list[Resource], str]:
    """Of one resource more than fits the page: the page, and the token of the next."""
    page = found[:count]
    return page, paging.encode_token(page[-1].id) if len(found) > count else ""
