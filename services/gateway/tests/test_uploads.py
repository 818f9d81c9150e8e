"""Files and uploads of the unmodified ``openai`` package, before the real data service."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from data_process import MAXIMUM_FILE_BYTES, FilesMesh

from millrace.data.v1 import service_pb2, uploads_pb2, uploads_pb2_grpc
from millrace_client import uploads
from millrace_client.api import Millrace
from millrace_client.endpoint import Endpoint

MIME_TYPE = "application/jsonl"
TEXT = bytes(range(256)) * 4000
EXAMPLE = {
    "messages": [
        {"role": "user", "content": "What is a millrace?"},
        {"role": "assistant", "content": "The channel that carries water to a wheel."},
    ]
}
EXAMPLES = (json.dumps(EXAMPLE).encode() + b"\n") * 40


@pytest.fixture(scope="module")
def files_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FilesMesh]:
    found = FilesMesh(tmp_path_factory.mktemp("files"))
    yield found
    found.close()


@pytest.fixture
def client(files_mesh: FilesMesh) -> openai.OpenAI:
    return files_mesh.mesh.openai()


@pytest.fixture
def http(files_mesh: FilesMesh) -> httpx.Client:
    return files_mesh.mesh.http()


def begin(client: openai.OpenAI, size_bytes: int, **more: Any) -> Any:
    given = {"filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data", **more}
    return client.uploads.create(bytes=size_bytes, **given)


def refused(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[str | None, str | None]:
    return caught.value.code, caught.value.param


@pytest.mark.parametrize("given", ["path", "bytes"])
def test_the_sdk_uploads_in_chunks_by_itself(
    client: openai.OpenAI, tmp_path: Path, given: str
) -> None:
    path = tmp_path / "train ü.jsonl"
    path.write_bytes(EXAMPLES)
    source: dict[str, Any] = {"file": path}
    if given == "bytes":
        source = {"file": EXAMPLES, "filename": path.name, "bytes": len(EXAMPLES)}
    upload = client.uploads.upload_file_chunked(
        **source,
        mime_type=MIME_TYPE,
        purpose="fine-tune",
        part_size=1500,
        md5=hashlib.md5(EXAMPLES).hexdigest(),
    )
    assert (upload.status, upload.bytes) == ("completed", len(EXAMPLES))
    assert upload.expires_at == upload.created_at + 3600
    assert upload.file is not None
    assert (upload.file.filename, upload.file.purpose) == (path.name, "fine-tune")
    assert client.files.wait_for_processing(upload.file.id).status == "processed"
    assert client.files.retrieve(upload.file.id) == upload.file
    assert client.files.content(upload.file.id).read() == EXAMPLES


def test_parts_in_parallel_in_the_order_that_is_named(client: openai.OpenAI) -> None:
    pieces = [TEXT[start : start + 100_000] for start in range(0, len(TEXT), 100_000)]
    upload = begin(client, len(TEXT))
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)

    def send(number: int) -> str:
        part = client.uploads.parts.create(upload.id, data=pieces[number])
        assert (part.object, part.upload_id) == ("upload.part", upload.id)
        return part.id

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(send, reversed(range(len(pieces)))))
    done = client.uploads.complete(upload.id, part_ids=sent[::-1])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == TEXT
    again = client.uploads.complete(upload.id, part_ids=sent[::-1])
    assert again == done, "completing twice is once"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=sent)
    assert caught.value.code == "upload_completed"


def test_killed_between_the_parts(files_mesh: FilesMesh, client: openai.OpenAI) -> None:
    """A part that was answered is there after SIGKILL, and so is the file."""
    upload = begin(client, len(TEXT))
    middle = len(TEXT) // 2
    first = client.uploads.parts.create(upload.id, data=TEXT[:middle])
    files_mesh.data.kill()
    files_mesh.data.start()
    patient = client.with_options(max_retries=10)
    second = patient.uploads.parts.create(upload.id, data=TEXT[middle:])
    done = patient.uploads.complete(upload.id, part_ids=[first.id, second.id])
    files_mesh.data.kill()
    files_mesh.data.start()
    assert patient.uploads.complete(upload.id, part_ids=[first.id, second.id]) == done
    assert done.file is not None
    assert patient.files.content(done.file.id).read() == TEXT


def test_a_cancelled_upload_takes_nothing_more(client: openai.OpenAI) -> None:
    upload = begin(client, 10)
    part = client.uploads.parts.create(upload.id, data=b"x" * 10)
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.parts.create(upload.id, data=b"x")
    assert caught.value.code == "upload_cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload.id, part_ids=[part.id])
    assert caught.value.code == "upload_cancelled"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"purpose": "assistants"}, "unsupported_value", "purpose"),
        ({"purpose": "vision"}, "unsupported_value", "purpose"),
        ({"purpose": "evals"}, "unsupported_value", "purpose"),
        ({"purpose": "batch_output"}, "invalid_value", "purpose"),
        ({"bytes": 0}, "invalid_argument", "bytes"),
        ({"bytes": MAXIMUM_FILE_BYTES + 1}, "file_too_large", "bytes"),
        ({"bytes": "1"}, "invalid_type", "bytes"),
        ({"filename": ""}, "invalid_argument", "filename"),
        ({"filename": "a\0b"}, "invalid_argument", "filename"),
        ({"mime_type": ""}, "invalid_argument", "mime_type"),
        (
            {"expires_after": {"anchor": "now", "seconds": 3600}},
            "invalid_value",
            "expires_after.anchor",
        ),
        (
            {"expires_after": {"anchor": "created_at", "seconds": 9}},
            "invalid_value",
            "expires_after.seconds",
        ),
        (
            {"expires_after": {"anchor": "created_at"}},
            "missing_required_parameter",
            "expires_after.seconds",
        ),
        ({"colour": "red"}, "unknown_parameter", "colour"),
    ],
)
def test_what_cannot_be_announced_is_named(
    http: httpx.Client, change: dict[str, Any], code: str, param: str
) -> None:
    body = {"bytes": 10, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    response = http.post("/v1/uploads", json={**body, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_what_cannot_be_completed_is_named(client: openai.OpenAI) -> None:
    upload = begin(client, 20, purpose="fine-tune", filename="a.jsonl")
    part = client.uploads.parts.create(upload.id, data=b"x" * 10)
    other = client.uploads.parts.create(upload.id, data=b"y" * 10)
    for part_ids, md5, expected in (
        ([part.id], "", ("size_mismatch", "part_ids")),
        ([part.id, "part-none"], "", ("part_not_found", "part_ids[1]")),
        ([part.id, part.id], "", ("invalid_argument", "part_ids")),
        ([], "", ("invalid_value", "part_ids")),
        ([part.id, other.id], "0" * 32, ("md5_mismatch", "md5")),
        ([part.id, other.id], "none", ("invalid_argument", "md5")),
        ([part.id, other.id], "", ("invalid_file", "file")),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
        assert refused(caught) == expected
    assert client.uploads.cancel(upload.id).status == "cancelled"


def test_what_is_no_part_is_named(client: openai.OpenAI, http: httpx.Client) -> None:
    upload = begin(client, 10)
    path = f"/v1/uploads/{upload.id}/parts"
    for form, expected in (
        ({"files": {"data": ("data", b"")}}, ("part_empty", "data")),
        ({"files": {"file": ("data", b"x")}}, ("unknown_parameter", "file")),
        ({"data": {"data": "x"}}, ("missing_required_parameter", "data")),
    ):
        response = http.post(path, **form)  # type: ignore[arg-type]
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["code"], error["param"]) == expected
    too_large = {"data": ("data", b"x" * (MAXIMUM_FILE_BYTES + 2**20 * 9))}
    assert http.post(path, files=too_large).status_code == 413


def test_parts_are_listed_for_whoever_goes_on(client: openai.OpenAI, http: httpx.Client) -> None:
    upload = begin(client, 6)
    headers = {"Idempotency-Key": f"{upload.id}-0"}
    sent = [
        client.uploads.parts.create(upload.id, data=b"one", extra_headers=headers).id
        for _ in range(2)
    ]
    assert len(set(sent)) == 1, "one request sent twice is one part"
    other = client.uploads.parts.create(upload.id, data=b"two")
    listed = http.get(f"/v1/uploads/{upload.id}/parts", params={"limit": 1}).json()
    assert [part["id"] for part in listed["data"]] == [other.id]
    assert listed["has_more"]
    rest = http.get(f"/v1/uploads/{upload.id}/parts", params={"after": other.id}).json()
    (found,) = rest["data"]
    assert (found["id"], found["bytes"]) == (sent[0], 3)
    assert found["digest"] == "sha256:" + hashlib.sha256(b"one").hexdigest()
    assert http.get(f"/v1/uploads/{upload.id}").json()["status"] == "pending"


def test_another_tenants_upload_does_not_exist(
    files_mesh: FilesMesh, client: openai.OpenAI
) -> None:
    upload = begin(client, 3)
    part = client.uploads.parts.create(upload.id, data=b"one")
    other = files_mesh.mesh.openai(files_mesh.mesh.other_secret)
    for identifier in (upload.id, "upload-none", "a b"):
        with pytest.raises(openai.NotFoundError):
            other.uploads.parts.create(identifier, data=b"x")
        with pytest.raises(openai.NotFoundError):
            other.uploads.complete(identifier, part_ids=[part.id])
        with pytest.raises(openai.NotFoundError):
            other.uploads.cancel(identifier)


def test_files_expire_when_they_are_told_to(client: openai.OpenAI) -> None:
    day: Any = {"anchor": "created_at", "seconds": 86_400}
    stays = client.files.create(file=b"x", purpose="user_data")
    goes = client.files.create(file=b"x", purpose="user_data", expires_after=day)
    assert (stays.expires_at, goes.expires_at) == (None, goes.created_at + 86_400)
    assert client.files.retrieve(goes.id) == goes
    upload = begin(client, 1, expires_after=day)
    part = client.uploads.parts.create(upload.id, data=b"x")
    made = client.uploads.complete(upload.id, part_ids=[part.id]).file
    assert made is not None
    assert made.expires_at == made.created_at + 86_400


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after.anchor"),
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
        ({"anchor": "created_at"}, "expires_after.seconds"),
        ({"seconds": 3600}, "expires_after.anchor"),
        ({"anchor": "created_at", "seconds": 3600, "x": 1}, "expires_after[x]"),
    ],
)
def test_a_wrong_time_to_live_is_named(
    client: openai.OpenAI, given: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"x", purpose="user_data", expires_after=given)  # type: ignore[arg-type]
    assert caught.value.param == param


@pytest.mark.parametrize("purpose", ["assistants", "evals", "vision"])
def test_purposes_of_what_is_not_here_are_refused_with_the_reason(
    client: openai.OpenAI, purpose: Any
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"'{purpose}' is not supported: ") as caught:
        client.files.create(file=b"x", purpose=purpose)
    assert refused(caught) == ("unsupported_value", "purpose")


def test_files_are_read_in_every_way_of_the_sdk(client: openai.OpenAI, tmp_path: Path) -> None:
    file = client.files.create(file=("notes.txt", "größer\n".encode()), purpose="user_data")
    assert (file.status, file.status_details) == ("processed", None)
    assert client.files.content(file.id).text == "größer\n"
    with pytest.warns(DeprecationWarning, match="content"):
        assert client.files.retrieve_content(file.id) == "größer\n"
    with client.files.with_streaming_response.content(file.id) as response:
        response.stream_to_file(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "größer\n"
    assert client.files.with_raw_response.retrieve(file.id).parse() == file


def test_pages_of_files_both_ways(client: openai.OpenAI) -> None:
    made = [client.files.create(file=EXAMPLES, purpose="batch").id for _ in range(3)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        page = client.files.list(limit=2, order=order, purpose="batch")  # type: ignore[arg-type]
        assert page.has_more
        assert [file.id for file in page] == expected
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.list(purpose="assistants")
    assert caught.value.param == "purpose"


def test_the_public_grpc_api_has_uploads_too(files_mesh: FilesMesh) -> None:
    mesh = files_mesh.mesh
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        stub = uploads_pb2_grpc.UploadServiceStub(channel)
        metadata = [("authorization", f"Bearer {mesh.member_secret}")]
        request = uploads_pb2.CreateUploadRequest(
            parent="tenants/default",
            filename="tenants/a name for people",
            purpose=service_pb2.FILE_PURPOSE_USER_DATA,
            mime_type="text/plain",
            size_bytes=3,
        )
        upload = stub.CreateUpload(request, metadata=metadata).upload
        header = uploads_pb2.AddUploadPartHeader(parent=upload.name)
        messages = (
            uploads_pb2.AddUploadPartRequest(header=header),
            uploads_pb2.AddUploadPartRequest(chunk=b"one"),
        )
        part = stub.AddUploadPart(iter(messages), metadata=metadata).part
        ids = [part.name.rpartition("/")[2]]
        complete = uploads_pb2.CompleteUploadRequest(name=upload.name, part_ids=ids)
        done = stub.CompleteUpload(complete, metadata=metadata).upload
        assert done.file.content.size_bytes == 3
        others = [("authorization", f"Bearer {mesh.other_secret}")]
        with pytest.raises(grpc.RpcError) as caught:
            stub.CompleteUpload(complete, metadata=others)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_command_line_uploads_in_parts(files_mesh: FilesMesh, tmp_path: Path) -> None:
    """What ``millrace files upload`` does; the same file again is the same, until it is deleted."""
    path = tmp_path / "big.bin"
    path.write_bytes(TEXT)
    mesh = files_mesh.mesh
    with Millrace(Endpoint(mesh.url, mesh.member_secret)) as client:
        made = uploads.upload(client, path, "user_data", part_bytes=300_000)
        assert uploads.upload(client, path, "user_data", part_bytes=300_000) == made
        assert made["digest"] == "sha256:" + hashlib.sha256(TEXT).hexdigest()
        client.files.delete(made["id"])
        again = uploads.upload(client, path, "user_data", part_bytes=300_000)
        assert again["id"] != made["id"]
