"""The data service, the registry and the compressor, as far as the tuner talks to them, on a
real gRPC server in this process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from millrace.compressor.v1 import service_pb2 as compressor
from millrace.compressor.v1 import service_pb2_grpc as compressor_grpc
from millrace.data.v1 import service_pb2 as data
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.registry.v1 import service_pb2 as registry
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace_runtime.errors import NotFound
from millrace_runtime.interceptors import ServiceInterceptor


class Data(data_grpc.DataServiceServicer):
    def __init__(self) -> None:
        self.files: dict[str, data.File] = {}
        self.datasets: dict[str, data.Dataset] = {}
        self.uploads: list[tuple[data.UploadFileHeader, bytes]] = []

    def GetFile(self, request: data.GetFileRequest, context: Any) -> data.GetFileResponse:
        if request.name not in self.files:
            raise NotFound(f"there is no file {request.name.rpartition('/')[2]}")
        return data.GetFileResponse(file=self.files[request.name])

    def GetDataset(self, request: data.GetDatasetRequest, context: Any) -> data.GetDatasetResponse:
        if request.name not in self.datasets:
            raise NotFound(f"there is no dataset {request.name.rpartition('/')[2]}")
        return data.GetDatasetResponse(dataset=self.datasets[request.name])

    def UploadFile(
        self, requests: Iterator[data.UploadFileRequest], context: Any
    ) -> data.UploadFileResponse:
        header = next(requests).header
        self.uploads.append((header, b"".join(request.chunk for request in requests)))
        name = f"{header.parent}/files/file-result-{len(self.uploads)}"
        return data.UploadFileResponse(file=data.File(name=name))


class Registry(registry_grpc.RegistryServiceServicer):
    def __init__(self) -> None:
        self.models: list[str] = []
        self.resolved: dict[str, registry.Version] = {}
        self.versions: list[registry.Version] = []
        self.rollouts: list[registry.Rollout] = []

    def ResolveVersion(
        self, request: registry.ResolveVersionRequest, context: Any
    ) -> registry.ResolveVersionResponse:
        if request.reference not in self.resolved:
            raise NotFound(f"there is no version {request.reference}")
        return registry.ResolveVersionResponse(version=self.resolved[request.reference])

    def ListModels(
        self, request: registry.ListModelsRequest, context: Any
    ) -> registry.ListModelsResponse:
        names = [f"{request.parent}/models/{model}" for model in self.models]
        return registry.ListModelsResponse(models=[registry.Model(name=name) for name in names])

    def ListVersions(
        self, request: registry.ListVersionsRequest, context: Any
    ) -> registry.ListVersionsResponse:
        under = f"{request.parent}/versions/"
        found = [version for version in self.versions if version.name.startswith(under)]
        return registry.ListVersionsResponse(versions=found)

    def ListRollouts(
        self, request: registry.ListRolloutsRequest, context: Any
    ) -> registry.ListRolloutsResponse:
        found = [rollout for rollout in self.rollouts if rollout.model == request.model]
        return registry.ListRolloutsResponse(rollouts=found)


class Compressor(compressor_grpc.CompressorServiceServicer):
    def __init__(self) -> None:
        self.compressions: list[compressor.Compression] = []

    def ListCompressions(
        self, request: compressor.ListCompressionsRequest, context: Any
    ) -> compressor.ListCompressionsResponse:
        found = [c for c in self.compressions if c.checkpoint.model == request.model]
        return compressor.ListCompressionsResponse(compressions=found)


class Neighbours:
    """All three on one port; ``token`` is what they ask for."""

    def __init__(self, token: str | None = None) -> None:
        self.data, self.registry, self.compressor = Data(), Registry(), Compressor()
        self._server = grpc.server(ThreadPoolExecutor(4), interceptors=[ServiceInterceptor(token)])
        data_grpc.add_DataServiceServicer_to_server(self.data, self._server)
        registry_grpc.add_RegistryServiceServicer_to_server(self.registry, self._server)
        compressor_grpc.add_CompressorServiceServicer_to_server(self.compressor, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()
