"""The gRPC face of searches for settings: convert, call, convert."""

import threading
from collections.abc import Iterator

import grpc

from millrace.registry.v1 import service_pb2, serving_tunings_pb2_grpc
from millrace.registry.v1 import serving_tunings_pb2 as pb
from millrace_registry.convert import deployment_key
from millrace_registry.domain import RequestKey
from millrace_registry.tuning import convert, plot
from millrace_registry.tuning.app import TuningApp
from millrace_registry.tuning.report import report_of
from millrace_registry.tuning.watch import watch
from millrace_runtime import idempotency, names

TUNING_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ServingTuningService"].full_name

_WATCH_SECONDS = 0.5


class TuningServicer(serving_tunings_pb2_grpc.ServingTuningServiceServicer):
    """``millrace.registry.v1.ServingTuningService``; requests were validated by the interceptor.

    ``draining`` ends the watches, so that the service can stop.
    """

    def __init__(self, app: TuningApp, draining: threading.Event) -> None:
        self._app = app
        self._draining = draining

    def register(self, server: grpc.Server) -> None:
        serving_tunings_pb2_grpc.add_ServingTuningServiceServicer_to_server(self, server)

    def CreateServingTuning(
        self, request: pb.CreateServingTuningRequest, context: grpc.ServicerContext
    ) -> pb.CreateServingTuningResponse:
        tenant, id = self._create(request.search, RequestKey(request.request_id, _digest(request)))
        made = convert.tuning_to_proto(*self._app.get(tenant, id))
        return pb.CreateServingTuningResponse(serving_tuning=made)

    def GetServingTuning(
        self, request: pb.GetServingTuningRequest, context: grpc.ServicerContext
    ) -> pb.GetServingTuningResponse:
        found = self._app.get(*convert.tuning_key(request.name))
        return pb.GetServingTuningResponse(serving_tuning=convert.tuning_to_proto(*found))

    def ListServingTunings(
        self, request: pb.ListServingTuningsRequest, context: grpc.ServicerContext
    ) -> pb.ListServingTuningsResponse:
        tenant = names.tenant_of(request.parent)
        deployment = deployment_key(request.deployment)[1] if request.deployment else ""
        found, token = self._app.page(tenant, deployment, request.page_size, request.page_token)
        return pb.ListServingTuningsResponse(
            serving_tunings=map(convert.tuning_to_proto, found), next_page_token=token
        )

    def CancelServingTuning(
        self, request: pb.CancelServingTuningRequest, context: grpc.ServicerContext
    ) -> pb.CancelServingTuningResponse:
        found = self._app.cancel(*convert.tuning_key(request.name))
        return pb.CancelServingTuningResponse(serving_tuning=convert.tuning_to_proto(*found))

    def GetServingTuningReport(
        self, request: pb.GetServingTuningReportRequest, context: grpc.ServicerContext
    ) -> pb.GetServingTuningReportResponse:
        tuning, deployment = self._app.get(*convert.tuning_key(request.name))
        report = report_of(tuning)
        drawn = plot.svg(report) if request.with_plot else b""
        return convert.report_to_proto(report, deployment, drawn)

    def tune_serving(
        self, request: service_pb2.TuneServingRequest, context: grpc.ServicerContext
    ) -> Iterator[service_pb2.TuneServingResponse]:
        """``RegistryService.TuneServing``: a search is made, and told of while somebody listens."""

        def goes_on() -> bool:
            return not self._draining.wait(_WATCH_SECONDS) and context.is_active()

        yield from watch(self._app, *self._create(request, RequestKey("", "")), goes_on)

    def _create(self, search: service_pb2.TuneServingRequest, key: RequestKey) -> tuple[str, str]:
        """(tenant, id) of the search that was made."""
        tenant, deployment = deployment_key(search.name)
        made = self._app.create(tenant, deployment, convert.wish_from_proto(search), key)
        return made.tenant, made.id


def _digest(request: pb.CreateServingTuningRequest) -> str:
    """Identifies what its user asked: the gateway's recent traffic is another at each try."""
    asked = pb.CreateServingTuningRequest()
    asked.CopyFrom(request)
    if asked.search.traffic.source != service_pb2.TrafficShape.SOURCE_GIVEN:
        asked.search.ClearField("traffic")
    return idempotency.request_digest(asked)
