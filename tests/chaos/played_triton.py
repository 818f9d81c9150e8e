"""Triton's gRPC interface, played: the registry's real client talks to it.

It loads what the model repository lists, as Triton does, and keeps who asked for what and when:
each registry is given a key of its own.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from millrace_registry.triton import LoadFailed
from tests.chaos.fencing_registry import Call, FakeTriton

_KEY_HEADER = "triton-grpc-protocol-millrace-control"
_LOAD_SECONDS = 0.3


class PlayedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server at ``address`` until ``stop``."""

    def __init__(self, repository: Path) -> None:
        self._models = FakeTriton(repository)
        self._lock = threading.RLock()
        self.calls: list[Call] = []
        self._server = grpc.server(ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def ready(self) -> set[tuple[str, int]]:
        with self._lock:
            return self._models.ready()

    def RepositoryIndex(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = pb.RepositoryIndexResponse()
        with self._lock:
            for (model, version), loaded in self._models.loaded.items():
                response.models.add(
                    name=model, version=str(version), state=loaded.state, reason=loaded.reason
                )
        return response

    def RepositoryModelLoad(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note(context, "load")
        try:
            with self._lock:
                self._models.load(request.model_name)
        except (LoadFailed, OSError) as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._note(context, "unload")
        with self._lock:
            self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def ModelStreamInfer(self, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            with self._lock:
                error = self._models.ask(request.model_name, int(request.model_version), "")
            response = pb.ModelStreamInferResponse(error_message=error)
            if not error:
                made = response.infer_response
                made.outputs.add(name="token_count", datatype="INT32", shape=[1])
                made.raw_output_contents.append(np.int32(2).tobytes())
            yield response

    def _note(self, context: grpc.ServicerContext, verb: str) -> None:
        caller = dict(context.invocation_metadata()).get(_KEY_HEADER, "")
        self.calls.append(Call(time.time(), str(caller), verb))
        time.sleep(_LOAD_SECONDS)
