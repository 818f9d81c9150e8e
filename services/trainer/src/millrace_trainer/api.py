"""The gRPC face of the service: convert, call, convert."""

import grpc

from millrace.trainer.v1 import service_pb2 as pb
from millrace.trainer.v1 import service_pb2_grpc
from millrace_runtime import idempotency, names
from millrace_trainer import convert
from millrace_trainer.app import TrainerApp
from millrace_trainer.domain import RequestKey

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TrainerService"].full_name


class TrainerServicer(service_pb2_grpc.TrainerServiceServicer):
    """``millrace.trainer.v1.TrainerService``; requests were validated by the interceptor."""

    def __init__(self, app: TrainerApp) -> None:
        self._app = app

    def register(self, server: grpc.Server) -> None:
        service_pb2_grpc.add_TrainerServiceServicer_to_server(self, server)

    def CreateRun(
        self, request: pb.CreateRunRequest, context: grpc.ServicerContext
    ) -> pb.CreateRunResponse:
        run = self._app.create(
            names.tenant_of(request.parent),
            request.model,
            request.dataset,
            request.initial_checkpoint,
            convert.given(request.architecture),
            convert.given(request.hyperparameters),
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreateRunResponse(run=convert.run_to_proto(run))

    def GetRun(self, request: pb.GetRunRequest, context: grpc.ServicerContext) -> pb.GetRunResponse:
        run = self._app.get(*convert.run_key(request.name))
        return pb.GetRunResponse(run=convert.run_to_proto(run))

    def ListRuns(
        self, request: pb.ListRunsRequest, context: grpc.ServicerContext
    ) -> pb.ListRunsResponse:
        tenant = names.tenant_of(request.parent)
        found, token = self._app.page(tenant, request.page_size, request.page_token)
        runs = [convert.run_to_proto(run) for run in found]
        return pb.ListRunsResponse(runs=runs, next_page_token=token)

    def CancelRun(
        self, request: pb.CancelRunRequest, context: grpc.ServicerContext
    ) -> pb.CancelRunResponse:
        run = self._app.cancel(*convert.run_key(request.name))
        return pb.CancelRunResponse(run=convert.run_to_proto(run))

    def PauseRun(
        self, request: pb.PauseRunRequest, context: grpc.ServicerContext
    ) -> pb.PauseRunResponse:
        run = self._app.pause(*convert.run_key(request.name))
        return pb.PauseRunResponse(run=convert.run_to_proto(run))

    def ResumeRun(
        self, request: pb.ResumeRunRequest, context: grpc.ServicerContext
    ) -> pb.ResumeRunResponse:
        run = self._app.resume(*convert.run_key(request.name))
        return pb.ResumeRunResponse(run=convert.run_to_proto(run))

    def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.GetCheckpointResponse:
        checkpoint = self._app.get_checkpoint(*convert.checkpoint_key(request.name))
        return pb.GetCheckpointResponse(checkpoint=convert.checkpoint_to_proto(checkpoint))

    def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> pb.ListCheckpointsResponse:
        tenant, run_id = convert.run_key(request.parent)
        found, token = self._app.checkpoint_page(
            tenant, run_id, request.page_size, request.page_token
        )
        checkpoints = [convert.checkpoint_to_proto(checkpoint) for checkpoint in found]
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)

    def ListRunMetrics(
        self, request: pb.ListRunMetricsRequest, context: grpc.ServicerContext
    ) -> pb.ListRunMetricsResponse:
        tenant, run_id = convert.run_key(request.parent)
        found, token = self._app.metric_page(tenant, run_id, request.page_size, request.page_token)
        metrics = [convert.metric_to_proto(metric) for metric in found]
        return pb.ListRunMetricsResponse(metrics=metrics, next_page_token=token)
