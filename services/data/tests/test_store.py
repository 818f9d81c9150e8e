import threading
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from data_builders import BUILT, DIGEST, LEASE_SECONDS, Parts

from millrace_data.__main__ import MIGRATIONS
from millrace_data.domain import (
    Content,
    Failure,
    File,
    FilePurpose,
    FileSet,
    Progress,
    RequestKey,
    WorkState,
)
from millrace_data.schema import METADATA
from millrace_runtime.database import Database, migrate
from millrace_runtime.errors import Aborted, AlreadyExists
from millrace_runtime.leases import LeaseLost


def announced(parts: Parts, id: str, digest: str = DIGEST, request: str = "") -> File:
    file = File(
        tenant="acme",
        id=id,
        filename="a.txt",
        purpose=FilePurpose.USER_DATA,
        content=Content("", digest, 10),
        example_count=0,
        create_time=parts.clock(),
    )
    return parts.file_store.announce(file, RequestKey(request, digest))


def test_migrations_make_exactly_the_schema(database: Database) -> None:
    migrate(database, MIGRATIONS)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database, MIGRATIONS)
    migrate(database, MIGRATIONS)


def test_a_file_is_shown_once_its_bytes_are_in_place(parts: Parts) -> None:
    file = announced(parts, "file-1")
    assert parts.file_store.get("acme", "file-1") is None
    shown = parts.file_store.make_available(file, "file:///a", "")
    assert parts.file_store.get("acme", "file-1") == shown
    assert shown.content == Content("file:///a", DIGEST, 10)
    assert shown.purpose is FilePurpose.USER_DATA


def test_making_available_twice_states_one_fact(parts: Parts) -> None:
    file = announced(parts, "file-1")
    first = parts.file_store.make_available(file, "file:///a", "")
    assert parts.file_store.make_available(file, "file:///a", "") == first
    assert [subject for subject, _, _ in parts.facts()] == ["millrace.acme.data.file.uploaded"]


def test_an_upload_that_was_given_up_cannot_be_finished(parts: Parts) -> None:
    file = announced(parts, "file-1")
    parts.file_store.abandon_pending(parts.clock() + timedelta(seconds=1))
    with pytest.raises(Aborted, match="send the file again"):
        parts.file_store.make_available(file, "file:///a", "")
    assert parts.facts() == []


def test_a_request_cut_off_half_way_is_taken_up_again(parts: Parts) -> None:
    announced(parts, "file-1", request="r1")
    again = announced(parts, "file-2", request="r1")
    assert again.id == "file-1"
    parts.file_store.make_available(again, "file:///a", "")
    assert [file.id for file in parts.file_store.page("acme", "", 10, None)] == ["file-1"]


def test_a_request_id_stands_for_one_content(parts: Parts) -> None:
    announced(parts, "file-1", request="r1")
    with pytest.raises(AlreadyExists):
        announced(parts, "file-2", digest="sha256:" + "cd" * 32, request="r1")


def test_bytes_are_removed_when_the_last_file_has_gone(parts: Parts) -> None:
    removed: list[str] = []
    for id in ("file-1", "file-2"):
        parts.file_store.make_available(announced(parts, id), "file:///a", "")
    parts.file_store.mark_deleted("acme", "file-1")
    assert not parts.file_store.remove_bytes(DIGEST, lambda: removed.append("one"))
    parts.file_store.mark_deleted("acme", "file-2")
    assert parts.file_store.unused_digests() == [DIGEST]
    assert parts.file_store.remove_bytes(DIGEST, lambda: removed.append("two"))
    assert not parts.file_store.remove_bytes(DIGEST, lambda: removed.append("three"))
    assert removed == ["two"]


def test_bytes_of_an_upload_in_progress_are_not_removed(parts: Parts) -> None:
    parts.file_store.make_available(announced(parts, "file-1"), "file:///a", "")
    announced(parts, "file-2")
    parts.file_store.mark_deleted("acme", "file-1")
    assert not parts.file_store.remove_bytes(DIGEST, lambda: pytest.fail("removed"))


def test_an_upload_waits_for_a_removal_of_the_same_bytes(parts: Parts) -> None:
    """Else the removal could take away what the upload has just put in place."""
    parts.file_store.make_available(announced(parts, "file-1"), "file:///a", "")
    parts.file_store.mark_deleted("acme", "file-1")
    order: list[str] = []

    def upload() -> None:
        announced(parts, "file-2")
        order.append("announced")

    uploading = threading.Thread(target=upload)

    def remove() -> None:
        uploading.start()
        uploading.join(timeout=0.3)
        order.append("removed")

    assert parts.file_store.remove_bytes(DIGEST, remove)
    uploading.join()
    assert order == ["removed", "announced"]


def test_requests_that_race_make_one_dataset(parts: Parts) -> None:
    made: list[str] = []
    barrier = threading.Barrier(4)

    def create() -> None:
        barrier.wait()
        made.append(parts.create(request=RequestKey("r1", DIGEST)).id)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_a_dataset_comes_back_as_it_went_in(parts: Parts) -> None:
    dataset = parts.create(source=FileSet((parts.upload().id,)))
    assert parts.dataset_store.get("acme", dataset.id) == dataset
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.record_progress(lease, Progress("read", 1, 2, {"seconds": 0.5}))
    built = parts.dataset_store.succeed(lease, BUILT)
    assert built == parts.dataset_store.get("acme", dataset.id)
    assert built.built == BUILT
    assert built.progress == Progress("read", 1, 2, {"seconds": 0.5})


def test_only_one_worker_holds_a_dataset(parts: Parts) -> None:
    parts.create()
    one, other = parts.store_of("one"), parts.store_of("other")
    first = one.claim()
    assert first is not None
    assert other.claim() is None
    parts.clock.advance(LEASE_SECONDS + 1)
    second = other.claim()
    assert second is not None
    assert second.epoch > first.epoch


def test_a_worker_that_lost_its_lease_writes_nothing(parts: Parts) -> None:
    dataset = parts.create()
    stale = parts.dataset_store.claim()
    assert stale is not None
    parts.clock.advance(LEASE_SECONDS + 1)
    lease = parts.store_of("other").claim()
    assert lease is not None
    before = parts.dataset_store.get("acme", dataset.id)
    for write in (
        lambda: parts.dataset_store.start(stale),
        lambda: parts.dataset_store.record_progress(stale, Progress("read", 1, 2)),
        lambda: parts.dataset_store.count_attempt(stale),
        lambda: parts.dataset_store.succeed(stale, BUILT),
        lambda: parts.dataset_store.fail(stale, Failure("X", "y")),
        lambda: parts.dataset_store.renew(stale),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert parts.dataset_store.get("acme", dataset.id) == before
    assert parts.facts() == []


def test_cancelling_takes_the_lease_away(parts: Parts) -> None:
    dataset = parts.create()
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.cancel("acme", dataset.id)
    with pytest.raises(LeaseLost):
        parts.dataset_store.renew(lease)
    with pytest.raises(LeaseLost):
        parts.dataset_store.succeed(lease, BUILT)
    assert parts.dataset_store.claim() is None
    cancelled = parts.dataset_store.cancel("acme", dataset.id)
    assert cancelled is not None
    assert cancelled.state is WorkState.CANCELLED
    assert [subject for subject, _, _ in parts.facts()] == ["millrace.acme.data.dataset.failed"]


def test_a_failed_transaction_leaves_neither_state_nor_fact(parts: Parts, tmp_path: Path) -> None:
    """The fact is written in the transaction of its state: what undoes one undoes the other."""
    dataset = parts.create()

    def refuse(*_: object) -> None:
        raise OSError("no space left on device")

    store = parts.store_of("one")
    store._record = refuse
    lease = store.claim()
    assert lease is not None
    with pytest.raises(OSError, match="no space"):
        store.succeed(lease, BUILT)
    kept = parts.dataset_store.get("acme", dataset.id)
    assert kept is not None
    assert kept.state is WorkState.QUEUED
    assert kept.built is None
