"""The services that the tuner asks: data for files, registry and compressor for models."""

import hashlib
from collections.abc import Iterator, Sequence

import grpc

from millrace.compressor.v1 import service_pb2 as compressor
from millrace.compressor.v1 import service_pb2_grpc as compressor_grpc
from millrace.data.v1 import prompts_pb2, prompts_pb2_grpc
from millrace.data.v1 import service_pb2 as data
from millrace.data.v1 import service_pb2_grpc as data_grpc
from millrace.lifecycle.v1 import lifecycle_pb2 as lifecycle
from millrace.registry.v1 import service_pb2 as registry
from millrace.registry.v1 import service_pb2_grpc as registry_grpc
from millrace_runtime.channel import call
from millrace_runtime.errors import InvalidArgument, NotFound
from millrace_tuner import convert
from millrace_tuner.domain import BaseVersion, FileReference
from millrace_tuner.prompt import Prompt
from millrace_tuner.serving import Scene

_CHUNK_SIZE_BYTES = 1 << 20
_UPLOAD_DEADLINE_SECONDS = 60.0
_PAGE_SIZE = 1000


class DataFiles:
    """``app.Files``, over gRPC."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = data_grpc.DataServiceStub(channel)
        self._prompts = prompts_pb2_grpc.PromptServiceStub(channel)

    def training_file(self, name: str, field: str) -> FileReference:
        """
        Raises:
            InvalidArgument: FILE_NOT_FOUND, FILE_PURPOSE, DATASET_NOT_READY; naming ``field``.
            Unavailable
        """
        if convert.is_dataset(name):
            return self._dataset(name, field)
        try:
            file = call(self._stub.GetFile, data.GetFileRequest(name=name)).file
        except NotFound as error:
            raise InvalidArgument(
                f"{error}; upload it first", reason="FILE_NOT_FOUND", field=field
            ) from None
        if file.purpose != data.FILE_PURPOSE_FINE_TUNE:
            raise InvalidArgument(
                f"{name.rpartition('/')[2]} was uploaded for another purpose; upload it with "
                "purpose 'fine-tune'",
                reason="FILE_PURPOSE",
                field=field,
            )
        return convert.file_from_proto(file)

    def _dataset(self, name: str, field: str) -> FileReference:
        id = name.rpartition("/")[2]
        try:
            dataset = call(self._stub.GetDataset, data.GetDatasetRequest(name=name)).dataset
        except NotFound as error:
            raise InvalidArgument(str(error), reason="FILE_NOT_FOUND", field=field) from None
        if not dataset.source.HasField("examples"):
            raise InvalidArgument(
                f"{id} holds tokens to train on; make a dataset of examples, from files with the "
                "source type 'examples'",
                reason="FILE_PURPOSE",
                field=field,
            )
        if dataset.state != lifecycle.WORK_STATE_SUCCEEDED:
            state = lifecycle.WorkState.Name(dataset.state).removeprefix("WORK_STATE_").lower()
            raise InvalidArgument(
                f"{id} is {state}; tune on it once it has succeeded",
                reason="DATASET_NOT_READY",
                field=field,
            )
        return convert.file_from_dataset(dataset)

    def prompt(self, name: str, version: int) -> Prompt:
        """
        Raises:
            InvalidArgument: PROMPT_NOT_FOUND, PROMPT_VERSION_NOT_FOUND.
            Unavailable
        """
        request = prompts_pb2.GetPromptVersionRequest(parent=name, number=version)
        try:
            found = call(self._prompts.GetPromptVersion, request).version
        except NotFound as error:
            part = "version" if error.field == "number" else "prompt"
            raise InvalidArgument(str(error), reason=error.reason, field=f"prompt.{part}") from None
        return Prompt(name, found.number, found.digest, found.template_json)

    def add_results(self, tenant: str, filename: str, content: bytes) -> str:
        """
        Raises:
            Unavailable
        """
        digest = hashlib.sha256(content).hexdigest()
        header = data.UploadFileHeader(
            parent=f"tenants/{tenant}",
            filename=filename,
            purpose=data.FILE_PURPOSE_FINE_TUNE_RESULTS,
            request_id=f"{filename}-{digest[:16]}",
            size_bytes=len(content),
        )
        response = call(
            self._stub.UploadFile, _upload(header, content), timeout=_UPLOAD_DEADLINE_SECONDS
        )
        return str(response.file.name)


def _upload(header: data.UploadFileHeader, content: bytes) -> Iterator[data.UploadFileRequest]:
    yield data.UploadFileRequest(header=header)
    for start in range(0, len(content), _CHUNK_SIZE_BYTES):
        yield data.UploadFileRequest(chunk=content[start : start + _CHUNK_SIZE_BYTES])


class ServedModels:
    """``app.Models``, over gRPC."""

    def __init__(self, registry_channel: grpc.Channel, compressor_channel: grpc.Channel) -> None:
        self._registry = registry_grpc.RegistryServiceStub(registry_channel)
        self._compressor = compressor_grpc.CompressorServiceStub(compressor_channel)

    def resolve(self, tenant: str, reference: str, field: str) -> BaseVersion:
        """
        Raises:
            NotFound, Unavailable
            InvalidArgument: MODEL_QUARANTINED.
        """
        request = registry.ResolveVersionRequest(parent=f"tenants/{tenant}", reference=reference)
        version = call(self._registry.ResolveVersion, request).version
        if version.state == registry.VERSION_STATE_QUARANTINED:
            raise InvalidArgument(
                f"{reference!r} was taken out of service ({version.state_reason}); tune another "
                "version",
                reason="MODEL_QUARANTINED",
                field=field,
            )
        return convert.base_from_proto(version)

    def ids(self, tenant: str) -> Sequence[str]:
        request = registry.ListModelsRequest(parent=f"tenants/{tenant}", page_size=_PAGE_SIZE)
        models = call(self._registry.ListModels, request).models
        return [model.name.rpartition("/")[2] for model in models]

    def scene(self, tenant: str, model: str) -> Scene:
        """
        Raises:
            Unavailable
        """
        parent = f"tenants/{tenant}"
        compressions = call(
            self._compressor.ListCompressions,
            compressor.ListCompressionsRequest(parent=parent, model=model, page_size=_PAGE_SIZE),
        ).compressions
        versions = call(
            self._registry.ListVersions,
            registry.ListVersionsRequest(parent=f"{parent}/models/{model}", page_size=_PAGE_SIZE),
        ).versions
        rollouts = call(
            self._registry.ListRollouts,
            registry.ListRolloutsRequest(parent=parent, model=model, page_size=_PAGE_SIZE),
        ).rollouts
        return Scene(
            compressions=[convert.compression_from_proto(each) for each in compressions],
            versions=[convert.version_from_proto(each) for each in versions],
            rollouts=[convert.rollout_from_proto(each) for each in rollouts],
        )
