"""Calls between services: token, validation, rich errors, trace context."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from millrace.data.v1 import service_pb2, service_pb2_grpc
from millrace_runtime.channel import call, open_channel
from millrace_runtime.errors import AlreadyExists, InvalidArgument, NotFound, Unauthenticated
from millrace_runtime.errors import Unavailable as UnavailableError
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_testkit.servers import free_port, wait_until

TOKEN = "secret"
FILE = "tenants/acme/files/file-1"


class FileServicer(service_pb2_grpc.DataServiceServicer):
    def GetFile(self, request, context):  # type: ignore[no-untyped-def]
        if request.name.endswith("absent"):
            raise NotFound(f"there is no file {request.name}")
        if request.name.endswith("bug"):
            raise ZeroDivisionError
        return service_pb2.GetFileResponse(file=service_pb2.File(name=request.name))

    def DeleteFile(self, request, context):  # type: ignore[no-untyped-def]
        raise AlreadyExists("used before", reason="REQUEST_ID_REUSED", field="request_id")

    def ReadFile(self, request, context):  # type: ignore[no-untyped-def]
        yield service_pb2.ReadFileResponse(chunk=b"a")
        raise NotFound("the rest is gone")

    def UploadFile(self, requests, context):  # type: ignore[no-untyped-def]
        size = sum(len(request.chunk) for request in requests)
        return service_pb2.UploadFileResponse(file=service_pb2.File(filename=str(size)))


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(TOKEN)])
    service_pb2_grpc.add_DataServiceServicer_to_server(FileServicer(), server)
    address = f"127.0.0.1:{free_port()}"
    server.add_insecure_port(address)
    server.start()
    yield address
    server.stop(None)


@pytest.fixture
def stub(address: str) -> Iterator[service_pb2_grpc.DataServiceStub]:
    with open_channel(address, TOKEN) as channel:
        yield service_pb2_grpc.DataServiceStub(channel)


def test_a_good_call_is_answered(stub: service_pb2_grpc.DataServiceStub) -> None:
    assert call(stub.GetFile, service_pb2.GetFileRequest(name=FILE)).file.name == FILE


def test_a_call_without_the_token_is_refused(address: str) -> None:
    with open_channel(address, None) as channel:
        stub = service_pb2_grpc.DataServiceStub(channel)
        with pytest.raises(Unauthenticated):
            call(stub.GetFile, service_pb2.GetFileRequest(name=FILE))


def test_the_rules_in_the_proto_are_applied(stub: service_pb2_grpc.DataServiceStub) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(stub.GetFile, service_pb2.GetFileRequest(name="../etc/passwd"))
    assert caught.value.field == "name"


def test_the_rules_are_applied_to_every_message_of_a_stream(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    too_large = service_pb2.UploadFileRequest(chunk=b"x" * (1 << 20) + b"x")
    with pytest.raises(InvalidArgument) as caught:
        call(stub.UploadFile, iter([too_large]))
    assert caught.value.field == "chunk"


def test_an_error_arrives_as_the_same_kind_with_its_field_and_reason(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        call(stub.GetFile, service_pb2.GetFileRequest(name="tenants/acme/files/absent"))
    with pytest.raises(AlreadyExists) as caught:
        call(stub.DeleteFile, service_pb2.DeleteFileRequest(name=FILE))
    assert (caught.value.field, caught.value.reason) == ("request_id", "REQUEST_ID_REUSED")


def test_a_stream_that_breaks_ends_with_its_error(stub: service_pb2_grpc.DataServiceStub) -> None:
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        for part in stub.ReadFile(service_pb2.ReadFileRequest(name=FILE)):
            received.append(part.chunk)
    assert received == [b"a"]
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_bug_is_an_internal_error_that_shows_nothing_of_the_inside(
    stub: service_pb2_grpc.DataServiceStub,
) -> None:
    with pytest.raises(UnavailableError, match="INTERNAL: internal error"):
        call(stub.GetFile, service_pb2.GetFileRequest(name="tenants/acme/files/bug"))


class Restarting(FileServicer):
    """Says for the first calls that it is not there, as a server does that stops just then."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals
        self.request_ids: list[str] = []

    def CreateDataset(self, request, context):  # type: ignore[no-untyped-def]
        self.request_ids.append(request.request_id)
        if len(self.request_ids) <= self._refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        return service_pb2.CreateDatasetResponse()


def test_a_call_that_was_not_taken_is_sent_again() -> None:
    servicer = Restarting(refusals=2)
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_DataServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open_channel(f"127.0.0.1:{port}", None) as channel:
        stub = service_pb2_grpc.DataServiceStub(channel)
        call(stub.CreateDataset, service_pb2.CreateDatasetRequest(request_id="once"))
    server.stop(None)
    assert servicer.request_ids == ["once"] * 3


def test_a_service_that_stays_away_is_unavailable() -> None:
    with open_channel(f"127.0.0.1:{free_port()}", None) as channel:
        stub = service_pb2_grpc.DataServiceStub(channel)
        with pytest.raises(UnavailableError):
            call(stub.GetFile, service_pb2.GetFileRequest(name=FILE))


def test_one_server_follows_another_at_the_same_port_and_no_call_fails() -> None:
    servers, answered = [start_shared()], 0
    address = f"127.0.0.1:{servers[0][1]}"
    stopping = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        nonlocal answered
        with open_channel(address, TOKEN) as channel:
            stub = service_pb2_grpc.DataServiceStub(channel)
            while not stopping.is_set():
                try:
                    call(stub.GetFile, service_pb2.GetFileRequest(name=FILE))
                    answered += 1
                except Exception as error:  # whatever it is, the caller was failed
                    failures.append(error)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for _ in range(5):
        before = answered
        wait_until(lambda: answered > before + 50, 20, "calls are answered")  # noqa: B023
        old, port = servers[-1]
        servers.append(start_shared(port))
        old.stop(5).wait()
    stopping.set()
    for asker in askers:
        asker.join()
    servers[-1][0].stop(None)
    assert failures == []


def start_shared(port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(
        ThreadPoolExecutor(4),
        interceptors=[ServiceInterceptor(TOKEN)],
        options=[("grpc.so_reuseport", 1)],
    )
    service_pb2_grpc.add_DataServiceServicer_to_server(FileServicer(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port
