"""The gRPC face of the service: convert, call, convert."""

import grpc

from millrace.tuner.v1 import service_pb2 as pb
from millrace.tuner.v1 import service_pb2_grpc
from millrace_runtime import idempotency, names
from millrace_tuner import convert
from millrace_tuner.app import TunerApp
from millrace_tuner.domain import RequestKey

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["TunerService"].full_name


class TunerServicer(service_pb2_grpc.TunerServiceServicer):
    """``millrace.tuner.v1.TunerService``; requests were validated by the interceptor."""

    def __init__(self, app: TunerApp) -> None:
        self._app = app

    def register(self, server: grpc.Server) -> None:
        service_pb2_grpc.add_TunerServiceServicer_to_server(self, server)

    def CreateJob(
        self, request: pb.CreateJobRequest, context: grpc.ServicerContext
    ) -> pb.CreateJobResponse:
        job = self._app.create(
            names.tenant_of(request.parent),
            convert.wish_from_proto(request),
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreateJobResponse(job=convert.job_to_proto(job))

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.GetJobResponse:
        job = self._app.get(*convert.job_key(request.name))
        return pb.GetJobResponse(job=convert.job_to_proto(job))

    def ListJobs(
        self, request: pb.ListJobsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobsResponse:
        found, token = self._app.page(
            names.tenant_of(request.parent),
            request.page_size,
            request.page_token,
            convert.wanted_metadata(request),
        )
        jobs = [convert.job_to_proto(job) for job in found]
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    def CancelJob(
        self, request: pb.CancelJobRequest, context: grpc.ServicerContext
    ) -> pb.CancelJobResponse:
        job = self._app.cancel(*convert.job_key(request.name))
        return pb.CancelJobResponse(job=convert.job_to_proto(job))

    def PauseJob(
        self, request: pb.PauseJobRequest, context: grpc.ServicerContext
    ) -> pb.PauseJobResponse:
        job = self._app.pause(*convert.job_key(request.name))
        return pb.PauseJobResponse(job=convert.job_to_proto(job))

    def ResumeJob(
        self, request: pb.ResumeJobRequest, context: grpc.ServicerContext
    ) -> pb.ResumeJobResponse:
        job = self._app.resume(*convert.job_key(request.name))
        return pb.ResumeJobResponse(job=convert.job_to_proto(job))

    def ListJobEvents(
        self, request: pb.ListJobEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListJobEventsResponse:
        tenant, job = convert.job_key(request.parent)
        found, token = self._app.events(tenant, job, request.page_size, request.page_token)
        events = [convert.event_to_proto(event) for event in found]
        return pb.ListJobEventsResponse(events=events, next_page_token=token)

    def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.GetCheckpointResponse:
        checkpoint = self._app.checkpoint(*convert.checkpoint_key(request.name))
        return pb.GetCheckpointResponse(checkpoint=convert.checkpoint_to_proto(checkpoint))

    def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: grpc.ServicerContext
    ) -> pb.ListCheckpointsResponse:
        tenant, job = convert.job_key(request.parent)
        found, token = self._app.checkpoints(tenant, job, request.page_size, request.page_token)
        checkpoints = [convert.checkpoint_to_proto(checkpoint) for checkpoint in found]
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)
