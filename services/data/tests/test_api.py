import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from data_builders import BUILT, Parts, chat_jsonl

from millrace.data.v1 import service_pb2 as pb
from millrace.data.v1 import service_pb2_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_data.api import DataServicer, whole
from millrace_data.domain import Failure
from millrace_runtime.channel import call, open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MillraceError,
    NotFound,
)
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.clock import FakeClock

STANDARD_LIBRARY = pb.DatasetSource(python_standard_library=pb.PythonStandardLibrary())


@pytest.fixture
def parts(tmp_path: object, clock: FakeClock) -> Iterator[Parts]:
    """On SQLite: what both databases do alike is asserted in test_store and test_app."""
    database = open_database(f"sqlite:///{tmp_path}/service.db")
    yield Parts(database, tmp_path, clock)  # type: ignore[arg-type]
    database.close()


@pytest.fixture
def stub(parts: Parts) -> Iterator[service_pb2_grpc.DataServiceStub]:
    """A client of a real server with the service's interceptor."""
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(None)])
    DataServicer(parts.files, parts.datasets).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield service_pb2_grpc.DataServiceStub(channel)
    channel.close()
    server.stop(None).wait()


def header(**fields: object) -> pb.UploadFileRequest:
    given = {
        "parent": "tenants/acme",
        "filename": "notes.txt",
        "purpose": pb.FILE_PURPOSE_USER_DATA,
        **fields,
    }
    return pb.UploadFileRequest(header=pb.UploadFileHeader(**given))


def upload(
    stub: service_pb2_grpc.DataServiceStub, content: bytes = b"some text", **fields: object
) -> pb.File:
    chunks = [
        pb.UploadFileRequest(chunk=content[start : start + 1000])
        for start in range(0, len(content), 1000)
    ]
    response = call(stub.UploadFile, iter([header(**fields), *chunks]))
    return response.file


def test_a_file_goes_in_and_comes_out(stub: service_pb2_grpc.DataServiceStub) -> None:
    content = bytes(range(256)) * 2000
    file = upload(stub, content)
    assert file.name.startswith("tenants/acme/files/file-")
    assert (file.filename, file.purpose) == ("notes.txt", pb.FILE_PURPOSE_USER_DATA)
    assert file.content.size_bytes == len(content)
    assert file.create_time.seconds > 0
    read = b"".join(r.chunk for r in stub.ReadFile(pb.ReadFileRequest(name=file.name)))
    assert read == content
    assert call(stub.GetFile, pb.GetFileRequest(name=file.name)).file == file


def test_files_are_listed_by_purpose_and_deleted(stub: service_pb2_grpc.DataServiceStub) -> None:
    notes = upload(stub)
    tuning = upload(stub, chat_jsonl(), purpose=pb.FILE_PURPOSE_FINE_TUNE)
    assert tuning.example_count == 10
    assert (tuning.report.format, tuning.report.message_count) == ("openai_chat", 30)
    assert tuning.report.estimated_token_count > tuning.report.character_count // 4
    listed = call(stub.ListFiles, pb.ListFilesRequest(parent="tenants/acme", page_size=1))
    assert list(listed.files) == [tuning]
    token = listed.next_page_token
    rest = pb.ListFilesRequest(parent="tenants/acme", page_size=1, page_token=token)
    assert list(call(stub.ListFiles, rest).files) == [notes]
    only = pb.ListFilesRequest(parent="tenants/acme", purpose=pb.FILE_PURPOSE_USER_DATA)
    assert list(call(stub.ListFiles, only).files) == [notes]
    call(stub.DeleteFile, pb.DeleteFileRequest(name=notes.name))
    with pytest.raises(NotFound):
        call(stub.GetFile, pb.GetFileRequest(name=notes.name))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "header"),
        ([pb.UploadFileRequest(chunk=b"x")], "header"),
        ([header(), pb.UploadFileRequest(chunk=b"x"), header()], "header"),
        ([header(parent="acme")], "header.parent"),
        ([header(filename="")], "header.filename"),
        ([header(purpose=0)], "header.purpose"),
        ([pb.UploadFileRequest()], "part"),
        ([header(), pb.UploadFileRequest(chunk=b"x" * 1_048_577)], "chunk"),
        ([header()], "file"),
    ],
)
def test_a_bad_upload_names_the_field(
    stub: service_pb2_grpc.DataServiceStub,
    parts: Parts,
    messages: list[pb.UploadFileRequest],
    field: str,
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        call(stub.UploadFile, iter(messages))
    assert raised.value.field == field
    assert parts.facts() == []


def test_a_bad_line_is_said_to_the_client(stub: service_pb2_grpc.DataServiceStub) -> None:
    content = chat_jsonl(10) + b'{"messages": []}\n'
    with pytest.raises(InvalidArgument, match="line 11: messages: must be a non-empty list"):
        upload(stub, content, purpose=pb.FILE_PURPOSE_FINE_TUNE)


def test_an_upload_sent_twice_is_one_file(stub: service_pb2_grpc.DataServiceStub) -> None:
    first = upload(stub, request_id="r1")
    assert upload(stub, request_id="r1") == first
    with pytest.raises(AlreadyExists) as raised:
        upload(stub, b"other", request_id="r1")
    assert raised.value.reason == "REQUEST_ID_REUSED"


def test_an_unset_recipe_is_answered_with_the_defaults(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    request = pb.CreateDatasetRequest(
        parent="tenants/acme", display_name="stdlib", source=STANDARD_LIBRARY
    )
    dataset = call(stub.CreateDataset, request).dataset
    assert dataset.state == lifecycle_pb2.WORK_STATE_QUEUED
    assert dataset.recipe.vocabulary_size == 4096
    assert dataset.recipe.heldout_fraction == 0.02
    assert dataset.recipe.near_duplicate_threshold == 0.8
    assert dataset.source == STANDARD_LIBRARY
    assert call(stub.GetDataset, pb.GetDatasetRequest(name=dataset.name)).dataset == dataset


def test_a_recipe_and_files_are_kept(stub: service_pb2_grpc.DataServiceStub) -> None:
    file = upload(stub)
    recipe = pb.DatasetRecipe(
        vocabulary_size=300,
        heldout_fraction=0.1,
        near_duplicate_threshold=0.5,
        maximum_bytes=10,
        seed=3,
    )
    source = pb.DatasetSource(files=pb.FileSet(names=[file.name]))
    request = pb.CreateDatasetRequest(parent="tenants/acme", source=source, recipe=recipe)
    dataset = call(stub.CreateDataset, request).dataset
    assert dataset.recipe == recipe
    assert dataset.source == source


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateDatasetRequest(parent="tenants/acme"), "source"),
        (pb.CreateDatasetRequest(parent="tenants/-", source=STANDARD_LIBRARY), "parent"),
        (
            pb.CreateDatasetRequest(
                parent="tenants/acme",
                source=STANDARD_LIBRARY,
                recipe=pb.DatasetRecipe(vocabulary_size=299),
            ),
            "recipe.vocabulary_size",
        ),
        (
            pb.CreateDatasetRequest(
                parent="tenants/acme",
                source=pb.DatasetSource(files=pb.FileSet(names=["tenants/globex/files/file-1"])),
            ),
            "source.files.names[0]",
        ),
        (
            pb.CreateDatasetRequest(
                parent="tenants/acme",
                source=pb.DatasetSource(files=pb.FileSet(names=["tenants/acme/files/file-1"])),
            ),
            "source.files.names[0]",
        ),
    ],
)
def test_a_bad_dataset_names_the_field(
    stub: service_pb2_grpc.DataServiceStub, request_: pb.CreateDatasetRequest, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        call(stub.CreateDataset, request_)
    assert raised.value.field == field


def create(stub: service_pb2_grpc.DataServiceStub, tenant: str = "acme") -> pb.Dataset:
    request = pb.CreateDatasetRequest(parent=f"tenants/{tenant}", source=STANDARD_LIBRARY)
    return call(stub.CreateDataset, request).dataset


def test_a_dataset_that_is_ready_says_all_of_it(
    stub: service_pb2_grpc.DataServiceStub, parts: Parts
) -> None:
    name = create(stub).name
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.succeed(lease, BUILT)
    dataset = call(stub.GetDataset, pb.GetDatasetRequest(name=name)).dataset
    assert dataset.state == lifecycle_pb2.WORK_STATE_SUCCEEDED
    assert dataset.content.digest == BUILT.content.digest
    assert dict(dataset.documents) == BUILT.documents
    assert (dataset.train_tokens, dataset.heldout_tokens) == (900, 90)
    with pytest.raises(FailedPrecondition) as raised:
        call(stub.CancelDataset, pb.CancelDatasetRequest(name=name))
    assert raised.value.reason == "DATASET_FINISHED"


def test_a_dataset_that_failed_says_why(
    stub: service_pb2_grpc.DataServiceStub, parts: Parts
) -> None:
    name = create(stub).name
    lease = parts.dataset_store.claim()
    assert lease is not None
    parts.dataset_store.fail(lease, Failure("DATASET_TOO_SMALL", "one document"))
    dataset = call(stub.GetDataset, pb.GetDatasetRequest(name=name)).dataset
    assert dataset.failure.reason == "DATASET_TOO_SMALL"
    assert not dataset.HasField("content")


def test_datasets_are_listed_for_one_tenant_or_for_all(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    mine, theirs = create(stub, "acme"), create(stub, "globex")
    for parent, expected in (
        ("tenants/acme", [mine]),
        ("tenants/globex", [theirs]),
        ("tenants/-", [theirs, mine]),
    ):
        listed = call(stub.ListDatasets, pb.ListDatasetsRequest(parent=parent))
        assert list(listed.datasets) == expected


def test_cancel(stub: service_pb2_grpc.DataServiceStub) -> None:
    name = create(stub).name
    cancelled = call(stub.CancelDataset, pb.CancelDatasetRequest(name=name)).dataset
    assert cancelled.state == lifecycle_pb2.WORK_STATE_CANCELLED
    assert cancelled.failure.reason == "CANCELLED"


def test_what_is_not_there(stub: service_pb2_grpc.DataServiceStub) -> None:
    file, dataset = "tenants/acme/files/file-1", "tenants/acme/datasets/dataset-1"
    attempts = (
        (stub.GetFile, pb.GetFileRequest(name=file)),
        (stub.DeleteFile, pb.DeleteFileRequest(name=file)),
        (stub.GetDataset, pb.GetDatasetRequest(name=dataset)),
        (stub.CancelDataset, pb.CancelDatasetRequest(name=dataset)),
    )
    for method, request in attempts:
        with pytest.raises(MillraceError) as raised:
            call(method, request)
        assert isinstance(raised.value, NotFound)
    with pytest.raises(grpc.RpcError) as broken:
        list(stub.ReadFile(pb.ReadFileRequest(name=file)))
    assert broken.value.code() == grpc.StatusCode.NOT_FOUND


def test_an_upload_that_breaks_off_leaves_nothing(
    stub: service_pb2_grpc.DataServiceStub, parts: Parts
) -> None:
    for number in range(100):  # about one in fifteen looks to the servicer as if it had ended
        going_on = threading.Event()
        messages = unfinished(number, going_on)
        call_in_progress = stub.UploadFile.future(messages)
        assert going_on.wait(5)
        time.sleep(0.005)  # the servicer is waiting for the rest
        call_in_progress.cancel()
    time.sleep(0.3)
    assert stub.ListFiles(pb.ListFilesRequest(parent="tenants/acme")).files == []


def unfinished(number: int, going_on: threading.Event) -> Iterator[pb.UploadFileRequest]:
    size = {"size_bytes": 2000} if number % 2 else {}
    yield header(**size)
    yield pb.UploadFileRequest(chunk=b"x" * 1000)
    going_on.set()
    threading.Event().wait(0.02)


def test_fewer_bytes_than_were_announced_are_refused(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        upload(stub, b"some text", size_bytes=10)
    assert caught.value.reason == "SIZE_MISMATCH"
    assert upload(stub, b"some text", size_bytes=9).content.size_bytes == 9


class Gone:
    """The context of a call whose client has gone."""

    def is_active(self) -> bool:
        return False


def test_what_ends_when_the_client_has_gone_is_no_end() -> None:
    for said in (pb.UploadFileHeader(), pb.UploadFileHeader(size_bytes=1)):
        with pytest.raises(Aborted):
            list(whole(iter([b"x"]), said, Gone()))  # type: ignore[arg-type]
