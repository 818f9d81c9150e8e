"""The service that the registry asks: the compressor, for artifacts that no fact told of."""

from millrace.compressor.v1 import service_pb2 as compressor_pb2
from millrace.compressor.v1 import service_pb2_grpc as compressor_grpc
from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_registry import convert
from millrace_registry.app import RegistryApp
from millrace_registry.catalogue import Catalogue
from millrace_registry.events import base_model_of
from millrace_runtime import names
from millrace_runtime.channel import call, open_channel

_PAGE_SIZE = 200


class ArtifactReconciler:
    """Registers what passed its gate and has no version: a fact may be late, or lost.

    The first sweep reads all compressions; later ones end, newest first, with a page that holds
    nothing new.
    """

    def __init__(
        self,
        compressor: compressor_grpc.CompressorServiceStub,
        catalogue: Catalogue,
        app: RegistryApp,
    ) -> None:
        self._compressor = compressor
        self._catalogue = catalogue
        self._app = app
        self._has_read_all = False

    @classmethod
    def at(
        cls, address: str, token: str | None, catalogue: Catalogue, app: RegistryApp
    ) -> "ArtifactReconciler":
        stub = compressor_grpc.CompressorServiceStub(open_channel(address, token))
        return cls(stub, catalogue, app)

    def __call__(self) -> None:
        token = ""
        while True:
            request = compressor_pb2.ListCompressionsRequest(
                parent="tenants/-", page_size=_PAGE_SIZE, page_token=token
            )
            page = call(self._compressor.ListCompressions, request)
            new = [found for found in page.compressions if self._is_missing(found)]
            for found in reversed(new):
                self._register(found)
            token = page.next_page_token
            if not token:
                self._has_read_all = True
            if not token or (self._has_read_all and not new):
                return

    def _is_missing(self, found: compressor_pb2.Compression) -> bool:
        if found.state != lifecycle_pb2.WORK_STATE_SUCCEEDED or not found.verdict.passed:
            return False
        if not convert.is_known_target(convert.target_of(found)):
            return False  # of a newer compressor: for the next registry to take up
        tenant = names.tenant_of(found.name)
        return self._catalogue.version_of_compression(tenant, found.name) is None

    def _register(self, found: compressor_pb2.Compression) -> None:
        self._app.artifact_finished(
            names.tenant_of(found.name),
            compression=found.name,
            target=convert.target_name(convert.target_of(found)),
            artifact=convert.content_from_proto(found.artifact),
            checkpoint=convert.document_of(found.checkpoint),
            measurements=convert.document_of(found.measurements),
            base_model=base_model_of(found.checkpoint.model),
            traceparent=found.traceparent,
            is_by_hand=not found.deployment,
            compress_start_time=convert.moment_of(found, "start_time"),
            compress_finish_time=convert.moment_of(found, "finish_time"),
        )
