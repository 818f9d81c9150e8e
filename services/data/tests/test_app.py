import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from data_builders import BUILT, MAXIMUM_FILE_BYTES, Parts, chat_jsonl

from millrace_data.app import UPLOAD_GRACE
from millrace_data.domain import FilePurpose, FileSet, RequestKey, WorkState
from millrace_runtime import telemetry
from millrace_runtime.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_an_upload_is_kept_under_its_digest(parts: Parts) -> None:
    file = parts.upload(b"some text")
    assert file.content.digest == digest_of(b"some text")
    assert file.content.size_bytes == 9
    assert parts.stored_files() == [digest_of(b"some text").removeprefix("sha256:")]
    assert b"".join(parts.files.read("acme", file.id)) == b"some text"
    assert parts.files.get("acme", file.id) == file
    assert parts.rings == ["relay"]


def test_an_upload_is_a_fact_in_its_requests_trace(parts: Parts) -> None:
    telemetry.start_tracing("test")
    with telemetry.span("upload", traceparent=TRACEPARENT):
        file = parts.upload()
    ((subject, traceparent, data),) = parts.facts()
    assert subject == "millrace.acme.data.file.uploaded"
    assert data["file"] == file.name
    assert data["content"]["digest"] == file.content.digest
    assert traceparent.split("-")[1] == TRACEPARENT.split("-")[1]


def test_chunks_are_joined(parts: Parts) -> None:
    file = parts.files.upload("acme", "a", FilePurpose.USER_DATA, "", [b"ab", b"", b"c"])
    assert file.content.digest == digest_of(b"abc")


def test_equal_uploads_share_bytes_and_nothing_else(parts: Parts) -> None:
    one, other = parts.upload(tenant="acme"), parts.upload(tenant="globex")
    assert one.id != other.id
    assert len(parts.stored_files()) == 1
    parts.files.delete("acme", one.id)
    assert b"".join(parts.files.read("globex", other.id)) == b"some text"
    parts.files.delete("globex", other.id)
    assert parts.stored_files() == []


def test_another_tenants_file_is_not_found(parts: Parts) -> None:
    file = parts.upload(tenant="acme")
    for attempt in (parts.files.get, parts.files.read, parts.files.delete):
        with pytest.raises(NotFound):
            attempt("globex", file.id)
    assert parts.files.page("globex", 0, "", None) == ([], "")
    assert parts.files.get("acme", file.id) == file


def test_a_deleted_file_has_gone(parts: Parts) -> None:
    file = parts.upload()
    parts.files.delete("acme", file.id)
    with pytest.raises(NotFound):
        parts.files.get("acme", file.id)
    with pytest.raises(NotFound):
        parts.files.delete("acme", file.id)
    assert parts.files.page("acme", 0, "", None) == ([], "")


def test_the_same_request_uploads_once(parts: Parts) -> None:
    first = parts.upload(request_id="r1")
    assert parts.upload(request_id="r1") == first
    assert len(parts.facts()) == 1
    with pytest.raises(AlreadyExists):
        parts.upload(b"other text", request_id="r1")
    with pytest.raises(AlreadyExists):
        parts.upload(request_id="r1", filename="other.txt")
    parts.files.delete("acme", first.id)
    assert parts.upload(request_id="r1").id != first.id


def test_fine_tune_files_are_counted(parts: Parts) -> None:
    file = parts.upload(chat_jsonl(12), purpose=FilePurpose.FINE_TUNE)
    assert file.example_count == 12
    assert file.report is not None
    assert (file.report.format, file.report.examples) == ("openai_chat", 12)
    assert parts.files.get(file.tenant, file.id).report == file.report
    assert parts.upload(chat_jsonl(12), purpose=FilePurpose.USER_DATA).report is None


def test_a_bad_fine_tune_file_is_refused_by_line_and_field(parts: Parts) -> None:
    broken = chat_jsonl(10).replace(b'"role": "user"', b'"role": "usr"', 1)
    with pytest.raises(InvalidArgument) as raised:
        parts.upload(broken, purpose=FilePurpose.FINE_TUNE, filename="train.jsonl")
    assert raised.value.reason == "INVALID_FILE"
    assert raised.value.field == "file"
    assert str(raised.value).startswith("train.jsonl: line 1: messages[1].role: must be one of")
    assert parts.stored_files() == []
    assert parts.facts() == []


def test_many_problems_are_summed_up(parts: Parts) -> None:
    with pytest.raises(InvalidArgument, match=r"line 6: .*; and 15 or more others$"):
        parts.upload(chat_jsonl(1) + b"{}\n" * 50, purpose=FilePurpose.FINE_TUNE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "FILE_EMPTY"), (b"x" * (MAXIMUM_FILE_BYTES + 1), "FILE_TOO_LARGE")],
)
def test_size_limits(parts: Parts, content: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parts.upload(content)
    assert raised.value.reason == reason
    assert parts.stored_files() == []


def test_an_upload_that_breaks_off_leaves_nothing(parts: Parts) -> None:
    def cut_off() -> Iterator[bytes]:
        yield b"the beginning"
        raise ConnectionResetError("the client has gone")

    with pytest.raises(ConnectionResetError):
        parts.files.upload("acme", "a", FilePurpose.USER_DATA, "", cut_off())
    assert parts.stored_files() == []
    assert parts.files.page("acme", 0, "", None) == ([], "")


def test_damaged_bytes_are_not_served(parts: Parts) -> None:
    file = parts.upload(b"some text")
    (parts.root / "files" / parts.stored_files()[0]).write_bytes(b"some t3xt")
    with pytest.raises(FailedPrecondition, match="upload the file again") as raised:
        next(parts.files.read("acme", file.id))
    assert raised.value.reason == "CONTENT_DAMAGED"
    parts.upload(b"some text", request_id="again")
    assert b"".join(parts.files.read("acme", file.id)) == b"some text"


def test_pages_cover_everything_newest_first(parts: Parts) -> None:
    files = [parts.upload(f"text {n}".encode()) for n in range(5)]
    tuning = parts.upload(chat_jsonl(), purpose=FilePurpose.FINE_TUNE)
    found, token = [], ""
    for _ in range(3):
        page, token = parts.files.page("acme", 2, token, None)
        found += page
    assert token == ""
    assert [file.id for file in found] == sorted((f.id for f in [*files, tuning]), reverse=True)
    assert parts.files.page("acme", 10, "", FilePurpose.FINE_TUNE) == ([tuning], "")


def test_a_page_token_of_somebody_else_is_refused(parts: Parts) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        parts.files.page("acme", 2, "%%%", None)


def test_the_reconciler_gives_up_what_a_crash_left(parts: Parts) -> None:
    """Killed after the announcement: a hidden row, and perhaps bytes."""

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    parts.stored.put_in_place = killed  # type: ignore[assignment,method-assign]
    with pytest.raises(KeyboardInterrupt):
        parts.upload(b"some text", request_id="r1")
    (parts.root / "files" / digest_of(b"some text").removeprefix("sha256:")).write_bytes(b"some")
    parts.files.reconcile()
    assert len(parts.stored_files()) == 1
    parts.clock.advance((UPLOAD_GRACE + timedelta(seconds=1)).total_seconds())
    parts.files.reconcile()
    assert parts.stored_files() == []


def test_the_reconciler_leaves_what_is_used(parts: Parts) -> None:
    file = parts.upload()
    parts.clock.advance(10 * UPLOAD_GRACE.total_seconds())
    parts.files.reconcile()
    assert b"".join(parts.files.read("acme", file.id)) == b"some text"


def test_creating_a_dataset_queues_it_and_rings(parts: Parts) -> None:
    dataset = parts.create()
    assert dataset.state is WorkState.QUEUED
    assert parts.datasets.get("acme", dataset.id) == dataset
    assert parts.rings == ["builder"]


def test_the_same_request_creates_once(parts: Parts) -> None:
    first = parts.create(request=RequestKey("r1", "sha256:1"))
    assert parts.create(request=RequestKey("r1", "sha256:1")) == first
    with pytest.raises(AlreadyExists):
        parts.create(request=RequestKey("r1", "sha256:2"))
    assert parts.create(tenant="globex", request=RequestKey("r1", "sha256:1")).id != first.id


def test_a_source_must_exist_and_be_ones_own(parts: Parts) -> None:
    mine, theirs = parts.upload(), parts.upload(tenant="globex")
    parts.create(source=FileSet((mine.id,)))
    with pytest.raises(InvalidArgument) as raised:
        parts.create(source=FileSet((mine.id, theirs.id)))
    assert raised.value.field == "source.files.names[1]"
    assert raised.value.reason == "FILE_NOT_FOUND"


def test_another_tenants_dataset_is_not_found(parts: Parts) -> None:
    dataset = parts.create()
    for attempt in (parts.datasets.get, parts.datasets.cancel):
        with pytest.raises(NotFound):
            attempt("globex", dataset.id)
    assert parts.datasets.page("globex", 0, "") == ([], "")
    assert parts.datasets.page("-", 0, "") == ([dataset], "")
    assert parts.datasets.get("acme", dataset.id).state is WorkState.QUEUED


def test_cancelling_says_so_once(parts: Parts) -> None:
    dataset = parts.create()
    assert parts.datasets.cancel("acme", dataset.id).state is WorkState.CANCELLED
    assert parts.datasets.cancel("acme", dataset.id).state is WorkState.CANCELLED
    ((subject, _, data),) = parts.facts()
    assert subject == "millrace.acme.data.dataset.failed"
    assert data["failure"]["reason"] == "CANCELLED"
    assert json.dumps(data)


def test_what_is_finished_cannot_be_cancelled(parts: Parts) -> None:
    dataset = parts.create()
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.succeed(lease, BUILT)
    with pytest.raises(FailedPrecondition, match="has SUCCEEDED already"):
        parts.datasets.cancel("acme", dataset.id)


def test_a_file_goes_when_its_time_has_come(parts: Parts) -> None:
    stays = parts.upload(b"stays")
    file = parts.files.upload("acme", "a", FilePurpose.USER_DATA, "r1", [b"goes"], 3600)
    assert file.expire_time == file.create_time + timedelta(hours=1)
    parts.clock.advance(3599)
    assert parts.files.get("acme", file.id) == file
    parts.clock.advance(1)
    with pytest.raises(NotFound):
        parts.files.get("acme", file.id)
    with pytest.raises(NotFound):
        parts.files.delete("acme", file.id)
    assert parts.files.page("acme", 0, "", None) == ([stays], "")
    parts.files.reconcile()
    assert parts.stored_files() == [stays.content.digest.removeprefix("sha256:")]
    again = parts.files.upload("acme", "a", FilePurpose.USER_DATA, "r1", [b"goes"], 3600)
    assert again.id != file.id


def test_the_time_to_live_is_part_of_the_request(parts: Parts) -> None:
    parts.files.upload("acme", "a", FilePurpose.USER_DATA, "r1", [b"x"], 3600)
    with pytest.raises(AlreadyExists):
        parts.files.upload("acme", "a", FilePurpose.USER_DATA, "r1", [b"x"], 7200)


def test_oldest_first(parts: Parts) -> None:
    made = sorted(parts.upload(f"text {n}".encode()).id for n in range(3))
    page, token = parts.files.page("acme", 2, "", None, oldest_first=True)
    rest, end = parts.files.page("acme", 2, token, None, oldest_first=True)
    assert [file.id for file in page + rest] == made
    assert end == ""
