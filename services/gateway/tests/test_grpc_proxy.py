"""The public gRPC API: keys, isolation, errors, streams."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from gateway_fakes import DIGEST
from gateway_mesh import Mesh
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.compressor.v1 import service_pb2_grpc as compressor_grpc
from millrace.data.v1 import service_pb2 as data_pb2
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.gateway.v1 import service_pb2 as gateway_pb2
from millrace.gateway.v1 import service_pb2_grpc as gateway_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace.trainer.v1 import service_pb2 as trainer_pb2
from millrace.trainer.v1 import service_pb2_grpc as trainer_grpc
from millrace_gateway.grpc_proxy import require_own
from millrace_runtime.errors import InvalidArgument, NotFound
from millrace_runtime.rich_status import from_rpc_error


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.grpc_address) as channel:
        yield channel


@pytest.fixture
def key(mesh: Mesh) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {mesh.member_secret}")]


def refused(call: Any, request: Any, metadata: Any, code: grpc.StatusCode) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        response = call(request, metadata=metadata, timeout=5)
        list(response) if hasattr(response, "__next__") else None
    error: Any = caught.value
    assert error.code() is code, error
    return from_rpc_error(error)


def a_dataset(channel: grpc.Channel, key: Any) -> data_pb2.Dataset:
    request = data_pb2.CreateDatasetRequest(
        parent="tenants/default",
        display_name="tenants/acme is a fine name",
        source=data_pb2.DatasetSource(python_standard_library=data_pb2.PythonStandardLibrary()),
    )
    stub = data_grpc.DataServiceStub(channel)
    return stub.CreateDataset(request, metadata=key, timeout=5).dataset  # type: ignore[no-any-return]


def test_a_call_goes_through(mesh: Mesh, channel: grpc.Channel, key: Any) -> None:
    dataset = a_dataset(channel, key)
    stub = data_grpc.DataServiceStub(channel)
    got = stub.GetDataset(data_pb2.GetDatasetRequest(name=dataset.name), metadata=key, timeout=5)
    assert got.dataset == dataset
    listed = stub.ListDatasets(
        data_pb2.ListDatasetsRequest(parent="tenants/default"), metadata=key, timeout=5
    )
    assert list(listed.datasets) == [dataset]
    assert "authorization" not in mesh.seen.metadata[-1], "a client's key stays at the gateway"


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer sk-mr-" + "x" * 43)]])
def test_no_key_no_answer(channel: grpc.Channel, metadata: Any) -> None:
    stub = data_grpc.DataServiceStub(channel)
    request = data_pb2.ListDatasetsRequest(parent="tenants/default")
    refused(stub.ListDatasets, request, metadata, grpc.StatusCode.UNAUTHENTICATED)
    read = data_pb2.ReadFileRequest(name="tenants/default/files/file-1")
    refused(stub.ReadFile, read, metadata, grpc.StatusCode.UNAUTHENTICATED)
    upload = iter([data_pb2.UploadFileRequest(chunk=b"x")])
    refused(stub.UploadFile, upload, metadata, grpc.StatusCode.UNAUTHENTICATED)
    keys = gateway_grpc.KeyServiceStub(channel)
    asked = gateway_pb2.ListKeysRequest(parent="tenants/default")
    refused(keys.ListKeys, asked, metadata, grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize("tenant", ["acme", "-", "default2"])
def test_other_tenants_do_not_exist(channel: grpc.Channel, key: Any, tenant: str) -> None:
    data = data_grpc.DataServiceStub(channel)
    trainer = trainer_grpc.TrainerServiceStub(channel)
    registry = registry_grpc.RegistryServiceStub(channel)
    gone = grpc.StatusCode.NOT_FOUND
    parent = f"tenants/{tenant}"
    refused(data.ListDatasets, data_pb2.ListDatasetsRequest(parent=parent), key, gone)
    refused(data.ReadFile, data_pb2.ReadFileRequest(name=f"{parent}/files/f"), key, gone)
    refused(trainer.ListRuns, trainer_pb2.ListRunsRequest(parent=parent), key, gone)
    run = trainer_pb2.CreateRunRequest(
        parent="tenants/default", model="demo", dataset=f"{parent}/datasets/d"
    )
    error = refused(trainer.CreateRun, run, key, gone)
    assert error.field == "dataset"
    lineage = registry_pb2.GetLineageRequest(parent="tenants/default", name=f"{parent}/runs/r")
    refused(registry.GetLineage, lineage, key, gone)
    files = data_pb2.DatasetSource(files=data_pb2.FileSet(names=[f"{parent}/files/f"]))
    made = data_pb2.CreateDatasetRequest(parent="tenants/default", source=files)
    assert refused(data.CreateDataset, made, key, gone).field == "source.files.names"


def test_what_is_the_meshs_own_is_not_there(channel: grpc.Channel, key: Any) -> None:
    registry = registry_grpc.RegistryServiceStub(channel)
    hidden = grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        next(registry.WatchRoutes(registry_pb2.WatchRoutesRequest(), metadata=key, timeout=5))
    assert caught.value.code() is hidden  # type: ignore[attr-defined]
    request = registry_pb2.MatchDeploymentsRequest(parent="tenants/default", model="demo")
    with pytest.raises(grpc.RpcError) as caught:
        registry.MatchDeployments(request, metadata=key, timeout=5)
    assert caught.value.code() is hidden  # type: ignore[attr-defined]


def test_rules_and_errors_say_the_field(mesh: Mesh, channel: grpc.Channel, key: Any) -> None:
    stub = trainer_grpc.TrainerServiceStub(channel)
    wrong = trainer_pb2.CreateRunRequest(
        parent="tenants/default", model="BAD", dataset="tenants/default/datasets/d"
    )
    error = refused(stub.CreateRun, wrong, key, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.field == "model"
    absent = trainer_pb2.GetRunRequest(name="tenants/default/runs/run-1")
    error = refused(stub.GetRun, absent, key, grpc.StatusCode.NOT_FOUND)
    assert (error.reason, error.field) == ("NOT_FOUND", "name")


def test_malformed_bytes(channel: grpc.Channel, key: Any) -> None:
    call = channel.unary_unary("/millrace.data.v1.DataService/GetFile")
    error = refused(call, b"\xff\xff\xff", key, grpc.StatusCode.INVALID_ARGUMENT)
    assert "GetFileRequest" in str(error)
    unknown = channel.unary_unary("/millrace.data.v1.DataService/Nope")
    with pytest.raises(grpc.RpcError) as caught:
        unknown(b"", metadata=key, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def upload(parent: str, *chunks: bytes) -> Iterator[data_pb2.UploadFileRequest]:
    header = data_pb2.UploadFileHeader(
        parent=parent, filename="f", purpose=data_pb2.FILE_PURPOSE_USER_DATA
    )
    yield data_pb2.UploadFileRequest(header=header)
    for chunk in chunks:
        yield data_pb2.UploadFileRequest(chunk=chunk)


def test_files(channel: grpc.Channel, key: Any) -> None:
    stub = data_grpc.DataServiceStub(channel)
    made = stub.UploadFile(
        upload("tenants/default", b"a" * 1_000_000, b"b"), metadata=key, timeout=10
    )
    chunks = stub.ReadFile(data_pb2.ReadFileRequest(name=made.file.name), metadata=key, timeout=10)
    assert b"".join(response.chunk for response in chunks) == b"a" * 1_000_000 + b"b"
    gone = grpc.StatusCode.NOT_FOUND
    refused(stub.UploadFile, upload("tenants/acme", b"x"), key, gone)


def test_a_second_header_cannot_smuggle(mesh: Mesh, channel: grpc.Channel, key: Any) -> None:
    def smuggling() -> Iterator[data_pb2.UploadFileRequest]:
        yield from upload("tenants/default", b"x")
        yield from upload("tenants/acme", b"x")

    stub = data_grpc.DataServiceStub(channel)
    refused(stub.UploadFile, smuggling(), key, grpc.StatusCode.NOT_FOUND)
    assert set(mesh.data.upload_parents) <= {"tenants/default"}, "the other never got there"


def test_a_compressions_content_is_what_its_owner_says(
    mesh: Mesh, channel: grpc.Channel, key: Any
) -> None:
    content = lifecycle_pb2.Content(uri="file:///true", digest=DIGEST)

    async def add() -> None:
        dataset = data_pb2.Dataset(name="tenants/default/datasets/dataset-1", content=content)
        mesh.data.datasets.add(dataset)
        mesh.trainer.checkpoints.add(
            trainer_pb2.Checkpoint(
                name="tenants/default/runs/run-1/checkpoints/ckpt-1",
                model="demo",
                dataset=dataset.name,
                content=content,
            )
        )

    mesh.in_loop(add)
    stolen = lifecycle_pb2.Content(uri="file:///somebody-elses", digest=DIGEST)
    reference = compressor_pb2.CheckpointReference(
        name="tenants/default/runs/run-1/checkpoints/ckpt-1",
        model="demo",
        content=stolen,
        evaluation=stolen,
    )
    request = compressor_pb2.CreateCompressionRequest(
        parent="tenants/default",
        checkpoint=reference,
        target=compressor_pb2.TARGET_OPENVINO_INT8,
    )
    stub = compressor_grpc.CompressorServiceStub(channel)
    made = stub.CreateCompression(request, metadata=key, timeout=5).compression
    assert made.checkpoint.content == content
    assert made.checkpoint.evaluation == content


def test_keys(mesh: Mesh, channel: grpc.Channel, key: Any) -> None:
    stub = gateway_grpc.KeyServiceStub(channel)
    operator = [("authorization", f"Bearer {mesh.operator_secret}")]
    request = gateway_pb2.CreateKeyRequest(
        parent="tenants/team-c", display_name="ci", role=gateway_pb2.KEY_ROLE_MEMBER
    )
    refused(stub.CreateKey, request, key, grpc.StatusCode.PERMISSION_DENIED)
    made = stub.CreateKey(request, metadata=operator, timeout=5)
    assert made.secret.startswith("sk-mr-")
    listing = gateway_pb2.ListKeysRequest(parent="tenants/team-c")
    assert list(stub.ListKeys(listing, metadata=operator, timeout=5).keys) == [made.key]
    assert made.key.limits == gateway_pb2.KeyLimits(priority=gateway_pb2.KEY_PRIORITY_DEFAULT)
    limits = gateway_pb2.KeyLimits(
        requests_per_minute=5, concurrent_generations=2, priority=gateway_pb2.KEY_PRIORITY_LOW
    )
    update = gateway_pb2.UpdateKeyRequest(name=made.key.name, limits=limits)
    refused(stub.UpdateKey, update, key, grpc.StatusCode.PERMISSION_DENIED)
    assert stub.UpdateKey(update, metadata=operator, timeout=5).key.limits == limits
    request.limits.tokens_per_minute = 0
    zero = refused(stub.CreateKey, request, operator, grpc.StatusCode.INVALID_ARGUMENT)
    assert zero.field == "limits.tokens_per_minute"
    request.limits.tokens_per_minute = 9
    limited = stub.CreateKey(request, metadata=operator, timeout=5).key
    assert limited.limits.tokens_per_minute == 9
    assert not limited.limits.HasField("requests_per_minute")
    stub.RevokeKey(gateway_pb2.RevokeKeyRequest(name=limited.name), metadata=operator, timeout=5)
    revoked = stub.RevokeKey(
        gateway_pb2.RevokeKeyRequest(name=made.key.name), metadata=operator, timeout=5
    )
    assert revoked.key.HasField("revoke_time")
    wrong = gateway_pb2.CreateKeyRequest(parent="tenants/team-c")
    error = refused(stub.CreateKey, wrong, operator, grpc.StatusCode.INVALID_ARGUMENT)
    assert error.field == "role"


def test_health_and_reflection(mesh: Mesh, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    names = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "millrace.gateway.v1.KeyService" in names
    assert "millrace.trainer.v1.TrainerService" in names


def test_require_own() -> None:
    require_own(data_pb2.GetFileRequest(name="tenants/a/files/f"), "a")
    require_own(data_pb2.GetFileRequest(name="whatever"), "a")
    for name in ("tenants/b/files/f", "tenants/", "tenants/-", "tenants//x", "tenants/ab"):
        with pytest.raises((NotFound, InvalidArgument)):
            require_own(data_pb2.GetFileRequest(name=name), "a")
    with pytest.raises(InvalidArgument):
        require_own(data_pb2.GetFileRequest(name="a\0b"), "a")
