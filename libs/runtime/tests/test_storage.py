"""A full or failing disk is called by its name, wherever it is met."""

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from millrace_runtime import storage
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.database import open_database
from millrace_runtime.jobs import JobError, storage_fault_is_said
from millrace_runtime.manifest import ManifestMismatch, sha256_bytes
from millrace_runtime.telemetry import FileSpanExporter
from millrace_runtime.work import content_failure


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "no"), "STORAGE_FULL"),
        (OSError(errno.EDQUOT, "no"), "STORAGE_FULL"),
        (OSError(errno.EIO, "no"), "STORAGE_ERROR"),
        (OSError(errno.EROFS, "no"), "STORAGE_ERROR"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "STORAGE_FULL"),
        (FileNotFoundError(errno.ENOENT, "no"), None),
        (ValueError("no"), None),
    ],
)
def test_a_fault_has_many_words(error: Exception, reason: str | None) -> None:
    assert storage.reason_of(error) == reason
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert storage.reason_of(wrapped) == reason


def test_a_database_that_cannot_grow_is_full(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/small.db")
    with database.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
        connection.exec_driver_sql("PRAGMA max_page_count = 3")
    with pytest.raises(Exception) as raised, database.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")
    database.close()
    assert storage.reason_of(raised.value) == "STORAGE_FULL"
    answer = storage.answer_of(raised.value)
    assert answer is not None
    assert answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_busy_database_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as raised:
            sqlite3.connect(tmp_path / "a.db", timeout=0).execute("CREATE TABLE t (x)")
    holder.close()
    assert storage.reason_of(raised.value) is None


def test_a_job_says_it_and_leaves_nothing_unfinished(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-00000001-ab" / "model").mkdir(parents=True)
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(JobError) as raised, storage_fault_is_said(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "no")
        except OSError as cause:
            raise JobError("CHECKPOINT_INVALID", "the model cannot be loaded") from cause
    assert raised.value.reason == "STORAGE_FULL"
    assert str(tmp_path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "no"), JobError("DATASET_DAMAGED", "x")])
def test_other_failures_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, storage_fault_is_said(tmp_path):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ManifestMismatch("weights differs"), "CONTENT_DAMAGED"),
        (ContentOutsideRoot("elsewhere"), "CONTENT_DAMAGED"),
        (FileNotFoundError(errno.ENOENT, "gone"), "CONTENT_DAMAGED"),
        (OSError(errno.EIO, "no"), "STORAGE_ERROR"),
        (OSError(errno.ENOSPC, "no"), "STORAGE_FULL"),
    ],
)
def test_content_that_is_damaged_and_content_that_cannot_be_read_now(
    error: Any, reason: str
) -> None:
    assert content_failure(error).reason == reason


def test_spans_on_a_full_disk_are_lost_and_nothing_else() -> None:
    exporter = FileSpanExporter(Path("/dev/full"))
    provider = TracerProvider()
    span = provider.get_tracer("test").start_span("lost")
    span.end()
    assert isinstance(span, ReadableSpan)
    assert exporter.export([span]) == SpanExportResult.FAILURE
    exporter.shutdown()
    provider.shutdown()


def test_a_damaged_copy_of_remote_content_is_fetched_again(tmp_path: Path) -> None:
    content = ContentStore("memory://bucket", tmp_path / "cache")
    path = content.working_path("files/a")
    path.write_bytes(b"remote")
    uri, digest = content.publish(path), sha256_bytes(b"remote")
    copy = content.file(uri, digest)
    copy.write_bytes(b"rem0te")
    assert content.file(uri, digest).read_bytes() == b"remote"
    assert [each.name for each in copy.parent.iterdir()] == [copy.name]


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    content = ContentStore(str(tmp_path / "data"), tmp_path / "cache")
    path = content.working_path("files/a")
    path.write_bytes(b"mine")
    uri = content.publish(path)
    os.rename(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(ContentOutsideRoot):
        content.file(uri, sha256_bytes(b"mine"))
