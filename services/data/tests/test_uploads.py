import hashlib
import threading
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
from data_builders import MAXIMUM_FILE_BYTES, MAXIMUM_PART_BYTES, Parts, chat_jsonl

from millrace_data.domain import FilePurpose, RequestKey, Upload, UploadPart, UploadState
from millrace_data.uploads import LIFETIME, PARTS_GRACE
from millrace_runtime import telemetry
from millrace_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
)

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONE_DAY_SECONDS = 86_400


def begun(parts: Parts, *contents: bytes, **announced: Any) -> tuple[Upload, list[UploadPart]]:
    """An upload of the size of all contents together, and a part of each."""
    upload = parts.begin(sum(map(len, contents)), **announced)
    return upload, [parts.add(upload, content) for content in contents]


def completed(parts: Parts, *contents: bytes, **announced: Any) -> Upload:
    upload, sent = begun(parts, *contents, **announced)
    return parts.complete(upload, *sent)


def content_of(parts: Parts, upload: Upload) -> bytes:
    assert upload.file is not None
    return b"".join(parts.files.read("acme", upload.file.id))


def pass_seconds(parts: Parts, seconds: float) -> None:
    parts.clock.advance(seconds + 1)
    parts.uploads.reconcile()
    parts.files.reconcile()


def killed(*_: object) -> Any:
    """What is never reached: the process was killed just before."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parts_become_a_file_in_the_order_they_are_named(
    parts: Parts, order: tuple[int, ...]
) -> None:
    contents = [b"one ", b"two ", b"three"]
    upload, sent = begun(parts, *contents)
    assert upload.state is UploadState.PENDING
    done = parts.complete(upload, *(sent[number] for number in order))
    assert done.state is UploadState.COMPLETED
    assert done.file is not None
    assert done.file.filename == "notes.txt"
    assert content_of(parts, done) == b"".join(contents[number] for number in order)
    assert parts.files.page("acme", 0, "", None) == ([done.file], "")
    assert parts.uploads.get("acme", upload.id) == done


def test_the_file_is_a_fact_in_its_requests_trace(parts: Parts) -> None:
    telemetry.start_tracing("test")
    upload, sent = begun(parts, b"one")
    assert parts.facts() == []
    with telemetry.span("complete", traceparent=TRACEPARENT):
        done = parts.complete(upload, *sent)
    assert done.file is not None
    ((subject, traceparent, data),) = parts.facts()
    assert subject == "millrace.acme.data.file.uploaded"
    assert data["file"] == done.file.name
    assert traceparent.split("-")[1] == TRACEPARENT.split("-")[1]
    assert parts.rings == ["relay"]


def test_completing_twice_gives_the_same_file_and_one_fact(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", b"two")
    first = parts.complete(upload, *sent)
    assert parts.complete(upload, *sent) == first
    assert parts.complete(upload, *sent, md5=hashlib.md5(b"onetwo").hexdigest()) == first
    assert len(parts.facts()) == 1
    for others, md5 in ((sent[::-1], ""), (sent[:1], ""), (sent, "0" * 32)):
        with pytest.raises(FailedPrecondition) as raised:
            parts.complete(upload, *others, md5=md5)
        assert raised.value.reason == "UPLOAD_COMPLETED"


def test_completions_that_race_make_one_file(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", b"two")
    barrier, made = threading.Barrier(4), list[Upload]()

    def complete() -> None:
        barrier.wait()
        made.append(parts.complete(upload, *sent))

    threads = [threading.Thread(target=complete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert {one.file.id for one in made if one.file} == {
        parts.files.page("acme", 0, "", None)[0][0].id
    }
    assert len(parts.facts()) == 1


def test_the_md5_is_checked(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", b"two")
    with pytest.raises(InvalidArgument) as raised:
        parts.complete(upload, *sent, md5="0" * 32)
    assert (raised.value.reason, raised.value.field) == ("MD5_MISMATCH", "md5")
    assert parts.stored_files() == []
    md5 = hashlib.md5(b"onetwo").hexdigest().upper()
    assert parts.complete(upload, *sent, md5=md5).state is UploadState.COMPLETED


def test_what_was_announced_must_be_what_came(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", b"two")
    with pytest.raises(InvalidArgument, match="6 bytes, and these parts have 3") as raised:
        parts.complete(upload, sent[0])
    assert (raised.value.reason, raised.value.field) == ("SIZE_MISMATCH", "part_ids")
    with pytest.raises(InvalidArgument) as raised:
        parts.uploads.complete("acme", upload.id, [sent[0].id, "part-none"], "")
    assert (raised.value.reason, raised.value.field) == ("PART_NOT_FOUND", "part_ids[1]")
    other = begun(parts, b"one")[1]
    with pytest.raises(InvalidArgument, match="has no part"):
        parts.complete(upload, sent[0], other[0])
    assert parts.complete(upload, *sent).file is not None, "it can still be completed"


def test_a_fine_tune_file_is_checked_as_an_uploaded_one(parts: Parts) -> None:
    content = chat_jsonl(12)
    done = completed(parts, content[:100], content[100:], purpose=FilePurpose.FINE_TUNE)
    assert done.file is not None
    assert done.file.example_count == 12
    broken = content.replace(b'"role": "user"', b'"role": "usr"', 1)
    with pytest.raises(InvalidArgument, match=r"line 1: messages\[1\].role") as raised:
        completed(parts, broken[:100], broken[100:], purpose=FilePurpose.FINE_TUNE)
    assert raised.value.reason == "INVALID_FILE"
    assert len(parts.facts()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "PART_EMPTY"), (b"x" * (MAXIMUM_PART_BYTES + 1), "PART_TOO_LARGE")],
)
def test_limits_of_a_part(parts: Parts, content: bytes, reason: str) -> None:
    upload = parts.begin(MAXIMUM_FILE_BYTES)
    with pytest.raises(InvalidArgument) as raised:
        parts.add(upload, content)
    assert raised.value.reason == reason
    assert parts.stored_parts() == []


def test_limits_of_an_upload(parts: Parts) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parts.begin(MAXIMUM_FILE_BYTES + 1)
    assert raised.value.reason == "FILE_TOO_LARGE"
    upload = parts.begin(10)
    parts.add(upload, b"x" * 10)
    kept = parts.add(upload, b"y" * 10)
    with pytest.raises(FailedPrecondition, match="more than twice") as full:
        parts.add(upload, b"z")
    assert full.value.reason == "UPLOAD_FULL"
    assert content_of(parts, parts.complete(upload, kept)) == b"y" * 10


def test_a_part_that_breaks_off_leaves_nothing(parts: Parts) -> None:
    def cut_off() -> Iterator[bytes]:
        yield b"the beginning"
        raise ConnectionResetError("the client has gone")

    upload = parts.begin(20)
    with pytest.raises(ConnectionResetError):
        parts.uploads.add_part("acme", upload.id, "", cut_off())
    assert parts.stored_parts() == []
    assert parts.uploads.parts("acme", upload.id, 0, "") == ([], "")


def test_requests_sent_twice_are_carried_out_once(parts: Parts) -> None:
    request = RequestKey("r1", "sha256:1")
    upload = parts.begin(6, request=request)
    assert parts.begin(6, request=request) == upload
    with pytest.raises(AlreadyExists):
        parts.begin(7, request=RequestKey("r1", "sha256:2"))
    part = parts.add(upload, b"one", "p1")
    assert parts.add(upload, b"one", "p1") == part
    with pytest.raises(AlreadyExists):
        parts.add(upload, b"two", "p1")
    assert parts.uploads.parts("acme", upload.id, 0, "") == ([part], "")
    other = parts.add(upload, b"two", "p2")
    done = parts.complete(upload, part, other)
    assert parts.begin(6, request=request) == done
    assert done.file is not None
    parts.files.delete("acme", done.file.id)
    assert parts.begin(6, request=request).state is UploadState.PENDING


def test_another_tenants_upload_is_not_found(parts: Parts) -> None:
    upload, sent = begun(parts, b"one")
    attempts: list[Callable[[], object]] = [
        lambda: parts.uploads.get("globex", upload.id),
        lambda: parts.uploads.add_part("globex", upload.id, "", [b"x"]),
        lambda: parts.uploads.parts("globex", upload.id, 0, ""),
        lambda: parts.uploads.complete("globex", upload.id, [sent[0].id], ""),
        lambda: parts.uploads.cancel("globex", upload.id),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    assert parts.uploads.get("acme", upload.id) == upload


def test_pages_of_parts(parts: Parts) -> None:
    upload, sent = begun(parts, *(b"x" * size for size in range(1, 6)))
    found, token = list[UploadPart](), ""
    for _ in range(3):
        page, token = parts.uploads.parts("acme", upload.id, 2, token)
        found += page
    assert token == ""
    assert {part.id for part in found} == {part.id for part in sent}
    assert [part.id for part in found] == sorted((p.id for p in sent), reverse=True)


def test_cancelling_is_the_end_and_once(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", request=RequestKey("r1", "d"))
    assert parts.uploads.cancel("acme", upload.id).state is UploadState.CANCELLED
    assert parts.uploads.cancel("acme", upload.id).state is UploadState.CANCELLED
    for attempt in (lambda: parts.add(upload, b"x"), lambda: parts.complete(upload, *sent)):
        with pytest.raises(FailedPrecondition) as raised:
            attempt()
        assert raised.value.reason == "UPLOAD_CANCELLED"
    assert parts.begin(3, request=RequestKey("r1", "d")).id != upload.id
    done = completed(parts, b"one")
    with pytest.raises(FailedPrecondition) as raised:
        parts.uploads.cancel("acme", done.id)
    assert raised.value.reason == "UPLOAD_COMPLETED"


def test_an_upload_expires_after_an_hour(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", request=RequestKey("r1", "d"))
    parts.clock.advance(LIFETIME.total_seconds())
    assert parts.uploads.get("acme", upload.id).state is UploadState.EXPIRED
    for attempt in (
        lambda: parts.add(upload, b"x"),
        lambda: parts.complete(upload, *sent),
        lambda: parts.uploads.cancel("acme", upload.id),
    ):
        with pytest.raises(FailedPrecondition, match="has expired") as raised:
            attempt()
        assert raised.value.reason == "UPLOAD_EXPIRED"
    assert parts.begin(3, request=RequestKey("r1", "d")).id != upload.id


@pytest.mark.parametrize("end", ["complete", "cancel", "expire"])
def test_parts_are_removed_after_the_end(parts: Parts, end: str) -> None:
    upload, sent = begun(parts, b"one", b"two")
    going_on = begun(parts, b"kept")[1] if end != "expire" else []
    if end == "complete":
        parts.complete(upload, *sent)
    elif end == "cancel":
        parts.uploads.cancel("acme", upload.id)
    else:
        pass_seconds(parts, LIFETIME.total_seconds())
    parts.uploads.reconcile()
    assert len(parts.stored_parts()) == len(sent) + len(going_on), "somebody may still read them"
    pass_seconds(parts, PARTS_GRACE.total_seconds())
    assert parts.stored_parts() == [f"{part.upload_id}/{part.id}" for part in going_on]
    assert parts.uploads.parts("acme", upload.id, 0, "") == ([], "")
    if end == "complete":
        assert content_of(parts, parts.uploads.get("acme", upload.id)) == b"onetwo"


@pytest.mark.parametrize("point", ["put_in_place", "make_part_available"])
def test_killed_while_a_part_comes_in(
    parts: Parts, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is sent again, and nothing of the first time stays."""
    upload = parts.begin(3)
    owner = parts.part_bytes if point == "put_in_place" else parts.upload_store
    with monkeypatch.context() as patch:
        patch.setattr(owner, point, killed)
        with pytest.raises(KeyboardInterrupt):
            parts.add(upload, b"one", "p1")
    assert parts.uploads.parts("acme", upload.id, 0, "") == ([], "")
    part = parts.add(upload, b"one", "p1")
    assert content_of(parts, parts.complete(upload, part)) == b"one"
    assert parts.stored_parts() == [f"{upload.id}/{part.id}"]
    pass_seconds(parts, PARTS_GRACE.total_seconds())
    assert parts.stored_parts() == []


@pytest.mark.parametrize("point", ["announce", "put_in_place", "complete"])
def test_killed_while_completing(parts: Parts, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that were acknowledged are there, and completing again makes the one file."""
    upload, sent = begun(parts, b"one", b"two")
    owners = {"announce": parts.file_store, "put_in_place": parts.stored}
    with monkeypatch.context() as patch:
        patch.setattr(owners.get(point, parts.upload_store), point, killed)
        with pytest.raises(KeyboardInterrupt):
            parts.complete(upload, *sent)
    assert parts.uploads.get("acme", upload.id).state is UploadState.PENDING
    assert parts.files.page("acme", 0, "", None) == ([], "")
    assert parts.facts() == []
    assert content_of(parts, parts.complete(upload, *sent)) == b"onetwo"
    assert len(parts.files.page("acme", 0, "", None)[0]) == 1
    assert len(parts.facts()) == 1


def test_a_completion_that_is_never_taken_up_again_leaves_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, sent = begun(parts, b"one")
    with monkeypatch.context() as patch:
        patch.setattr(parts.upload_store, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            parts.complete(upload, *sent)
    pass_seconds(parts, LIFETIME.total_seconds())
    pass_seconds(parts, PARTS_GRACE.total_seconds())
    assert (parts.stored_parts(), parts.stored_files()) == ([], [])


def test_an_upload_cancelled_while_it_is_joined_makes_no_file(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, sent = begun(parts, b"one")
    put_in_place = parts.stored.put_in_place

    def cancelled_meanwhile(staged: Any) -> str:
        parts.uploads.cancel("acme", upload.id)
        return put_in_place(staged)

    monkeypatch.setattr(parts.stored, "put_in_place", cancelled_meanwhile)
    with pytest.raises(FailedPrecondition) as raised:
        parts.complete(upload, *sent)
    assert raised.value.reason == "UPLOAD_CANCELLED"
    assert parts.files.page("acme", 0, "", None) == ([], "")
    assert parts.facts() == []


def test_a_completion_that_took_too_long_changes_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was given up meanwhile: neither it nor the end of the upload is recorded."""
    upload, sent = begun(parts, b"one")
    put_in_place = parts.stored.put_in_place

    def given_up_meanwhile(staged: Any) -> str:
        parts.clock.advance(1)
        parts.file_store.abandon_pending(parts.clock())
        return put_in_place(staged)

    with monkeypatch.context() as patch:
        patch.setattr(parts.stored, "put_in_place", given_up_meanwhile)
        with pytest.raises(Aborted):
            parts.complete(upload, *sent)
    assert parts.uploads.get("acme", upload.id).state is UploadState.PENDING
    assert content_of(parts, parts.complete(upload, *sent)) == b"one"


def test_a_part_that_comes_too_late_is_removed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = parts.begin(3)
    put_in_place = parts.part_bytes.put_in_place

    def cancelled_meanwhile(*given: Any) -> str:
        parts.uploads.cancel("acme", upload.id)
        return put_in_place(*given)

    monkeypatch.setattr(parts.part_bytes, "put_in_place", cancelled_meanwhile)
    with pytest.raises(FailedPrecondition):
        parts.add(upload, b"one")
    assert parts.stored_parts() == []


def test_a_damaged_part_is_not_joined(parts: Parts) -> None:
    upload, sent = begun(parts, b"one", b"two")
    (parts.root / "uploads" / upload.id / sent[1].id).write_bytes(b"tw0")
    with pytest.raises(MillraceError) as raised:
        parts.complete(upload, *sent)
    assert raised.value.reason == "CONTENT_DAMAGED"
    assert parts.stored_files() == []
    again = parts.add(upload, b"two")
    assert content_of(parts, parts.complete(upload, sent[0], again)) == b"onetwo"


def test_the_file_expires_as_it_was_announced(parts: Parts) -> None:
    done = completed(parts, b"one", expire_seconds=ONE_DAY_SECONDS)
    assert done.file is not None
    assert done.file.expire_time is not None
    assert (done.file.expire_time - done.file.create_time).total_seconds() == ONE_DAY_SECONDS
    parts.clock.advance(ONE_DAY_SECONDS)
    assert parts.uploads.get("acme", done.id).file is None
