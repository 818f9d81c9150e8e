from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from data_builders import MAXIMUM_FILE_BYTES, Parts

from millrace.data.v1 import service_pb2, uploads_pb2_grpc
from millrace.data.v1 import uploads_pb2 as pb
from millrace_data.api import DataServicer
from millrace_data.upload_api import UploadServicer
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.clock import FakeClock

Stub = uploads_pb2_grpc.UploadServiceStub


@pytest.fixture
def parts(tmp_path: object, clock: FakeClock) -> Iterator[Parts]:
    """On SQLite: what both databases do alike is asserted in test_uploads."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield Parts(database, tmp_path, clock)  # type: ignore[arg-type]
    database.close()


@pytest.fixture
def stub(parts: Parts) -> Iterator[Stub]:
    """A client of a real server with the service's interceptor."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    data = DataServicer(parts.files, parts.datasets)
    UploadServicer(parts.uploads, data).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield Stub(channel)
    channel.close()
    server.stop(None).wait()


def begin(stub: Stub, size_bytes: int = 6, **fields: Any) -> pb.Upload:
    given: dict[str, Any] = {
        "parent": "tenants/acme",
        "filename": "notes.txt",
        "purpose": service_pb2.FILE_PURPOSE_USER_DATA,
        "mime_type": "text/plain",
        "size_bytes": size_bytes,
        **fields,
    }
    return call(stub.CreateUpload, pb.CreateUploadRequest(**given)).upload


def add(stub: Stub, upload: pb.Upload, content: bytes, **header: Any) -> pb.UploadPart:
    said = pb.AddUploadPartHeader(parent=upload.name, **header)
    chunks = [content[start : start + 2] for start in range(0, len(content), 2)]
    messages = [pb.AddUploadPartRequest(chunk=chunk) for chunk in chunks]
    return call(stub.AddUploadPart, iter([pb.AddUploadPartRequest(header=said), *messages])).part


def complete(stub: Stub, upload: pb.Upload, *parts: pb.UploadPart, **more: Any) -> pb.Upload:
    ids = [part.name.rpartition("/")[2] for part in parts]
    request = pb.CompleteUploadRequest(name=upload.name, part_ids=ids, **more)
    return call(stub.CompleteUpload, request).upload


def test_an_upload_from_its_beginning_to_its_file(stub: Stub, parts: Parts) -> None:
    upload = begin(stub, expire_after_seconds=7200)
    assert upload.name.startswith("tenants/acme/uploads/upload-")
    assert upload.state == pb.UPLOAD_STATE_PENDING
    assert upload.expire_time.seconds == upload.create_time.seconds + 3600
    sent = [add(stub, upload, b"one", size_bytes=3), add(stub, upload, b"two")]
    assert sent[0].name.startswith(f"{upload.name}/parts/part-")
    assert (sent[0].content.size_bytes, sent[0].content.uri) == (3, "")
    listed = call(stub.ListUploadParts, pb.ListUploadPartsRequest(parent=upload.name))
    assert {part.name for part in listed.parts} == {part.name for part in sent}
    done = complete(stub, upload, *sent)
    assert done.state == pb.UPLOAD_STATE_COMPLETED
    assert done.file.expire_time.seconds == done.file.create_time.seconds + 7200
    assert call(stub.GetUpload, pb.GetUploadRequest(name=upload.name)).upload == done
    assert b"".join(parts.files.read("acme", done.file.name.rpartition("/")[2])) == b"onetwo"


def test_cancel(stub: Stub) -> None:
    upload = begin(stub)
    request = pb.CancelUploadRequest(name=upload.name)
    assert call(stub.CancelUpload, request).upload.state == pb.UPLOAD_STATE_CANCELLED
    with pytest.raises(FailedPrecondition):
        add(stub, upload, b"x")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parent": "tenants/-"}, "parent"),
        ({"filename": ""}, "filename"),
        ({"purpose": 0}, "purpose"),
        ({"mime_type": ""}, "mime_type"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"size_bytes": MAXIMUM_FILE_BYTES + 1}, "size_bytes"),
        ({"expire_after_seconds": 3599}, "expire_after_seconds"),
        ({"expire_after_seconds": 2_592_001}, "expire_after_seconds"),
    ],
)
def test_a_bad_upload_names_the_field(stub: Stub, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        begin(stub, **fields)
    assert raised.value.field == field


def test_a_bad_part_or_completion_names_the_field(stub: Stub) -> None:
    upload = begin(stub)
    with pytest.raises(InvalidArgument) as raised:
        add(stub, upload, b"one", size_bytes=4)
    assert raised.value.reason == "SIZE_MISMATCH"
    with pytest.raises(InvalidArgument) as raised:
        add(stub, upload, b"")
    assert raised.value.field == "part"
    part = add(stub, upload, b"one")
    for sent, md5, field in (((), "", "part_ids"), ((part, part), "", "part_ids")):
        with pytest.raises(InvalidArgument) as raised:
            complete(stub, upload, *sent, md5=md5)
        assert raised.value.field == field
    with pytest.raises(InvalidArgument) as raised:
        complete(stub, upload, part, md5="0")
    assert raised.value.field == "md5"


def test_what_is_not_there(stub: Stub) -> None:
    none = pb.Upload(name="tenants/acme/uploads/upload-none")
    with pytest.raises(NotFound):
        call(stub.GetUpload, pb.GetUploadRequest(name=none.name))
    with pytest.raises(NotFound):
        add(stub, none, b"x")
    with pytest.raises(NotFound):
        complete(stub, none, pb.UploadPart(name="part-1"))
