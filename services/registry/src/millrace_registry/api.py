"""The gRPC face of the service: convert, call, convert."""

import threading
from collections.abc import Iterator

import grpc

from millrace.registry.v1 import service_pb2 as pb
from millrace.registry.v1 import service_pb2_grpc
from millrace_registry import convert
from millrace_registry.app import RegistryApp
from millrace_registry.control_store import ControlStore
from millrace_registry.domain import RequestKey
from millrace_registry.tuning.api import TuningServicer
from millrace_runtime import idempotency, names, telemetry
from millrace_runtime.errors import FailedPrecondition

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name

_WATCH_SECONDS = 0.2


class RegistryServicer(service_pb2_grpc.RegistryServiceServicer):
    """``millrace.registry.v1.RegistryService``; requests were validated by the interceptor.

    ``draining`` ends the watches, so that the service can stop. Without ``tunings`` no settings
    are searched for.
    """

    def __init__(
        self,
        app: RegistryApp,
        control: ControlStore,
        draining: threading.Event,
        tunings: TuningServicer | None = None,
    ) -> None:
        self._app = app
        self._tunings = tunings
        self._control = control
        self._draining = draining

    def register(self, server: grpc.Server) -> None:
        service_pb2_grpc.add_RegistryServiceServicer_to_server(self, server)

    def GetModel(
        self, request: pb.GetModelRequest, context: grpc.ServicerContext
    ) -> pb.GetModelResponse:
        model = self._app.model(*convert.model_key(request.name))
        return pb.GetModelResponse(model=convert.model_to_proto(model))

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        tenant = names.tenant_of(request.parent)
        found, token = self._app.models(tenant, request.page_size, request.page_token)
        models = [convert.model_to_proto(model) for model in found]
        return pb.ListModelsResponse(models=models, next_page_token=token)

    def DeleteModel(
        self, request: pb.DeleteModelRequest, context: grpc.ServicerContext
    ) -> pb.DeleteModelResponse:
        self._app.delete_model(*convert.model_key(request.name))
        return pb.DeleteModelResponse()

    def SetAlias(
        self, request: pb.SetAliasRequest, context: grpc.ServicerContext
    ) -> pb.SetAliasResponse:
        tenant, id = convert.model_key(request.name)
        model = self._app.set_alias(tenant, id, request.alias, request.version)
        return pb.SetAliasResponse(model=convert.model_to_proto(model))

    def SetTags(
        self, request: pb.SetTagsRequest, context: grpc.ServicerContext
    ) -> pb.SetTagsResponse:
        key = convert.tagged_key(request.name)
        tags = self._app.set_tags(*key, dict(request.tags), set(request.removed))
        return pb.SetTagsResponse(tags=tags)

    def GetVersion(
        self, request: pb.GetVersionRequest, context: grpc.ServicerContext
    ) -> pb.GetVersionResponse:
        version = self._app.version(*convert.version_key(request.name))
        return pb.GetVersionResponse(version=convert.version_to_proto(version))

    def ListVersions(
        self, request: pb.ListVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListVersionsResponse:
        tenant, model = convert.model_key(request.parent)
        found, token = self._app.versions(tenant, model, request.page_size, request.page_token)
        versions = [convert.version_to_proto(version) for version in found]
        return pb.ListVersionsResponse(versions=versions, next_page_token=token)

    def ResolveVersion(
        self, request: pb.ResolveVersionRequest, context: grpc.ServicerContext
    ) -> pb.ResolveVersionResponse:
        version = self._app.resolve(names.tenant_of(request.parent), request.reference)
        return pb.ResolveVersionResponse(version=convert.version_to_proto(version))

    def HoldVersion(
        self, request: pb.HoldVersionRequest, context: grpc.ServicerContext
    ) -> pb.HoldVersionResponse:
        expire_time = self._app.hold(*convert.version_key(request.name))
        return pb.HoldVersionResponse(expire_time=convert.timestamp(expire_time))

    def QuarantineVersion(
        self, request: pb.QuarantineVersionRequest, context: grpc.ServicerContext
    ) -> pb.QuarantineVersionResponse:
        tenant, model, number = convert.version_key(request.name)
        version = self._app.quarantine(tenant, model, number, request.reason)
        return pb.QuarantineVersionResponse(version=convert.version_to_proto(version))

    def CreateDeployment(
        self, request: pb.CreateDeploymentRequest, context: grpc.ServicerContext
    ) -> pb.CreateDeploymentResponse:
        tenant = names.tenant_of(request.parent)
        deployment = self._app.create_deployment(
            convert.deployment_from_proto(request.deployment, tenant, ""),
            RequestKey(request.request_id, idempotency.request_digest(request)),
        )
        return pb.CreateDeploymentResponse(deployment=convert.deployment_to_proto(deployment))

    def GetDeployment(
        self, request: pb.GetDeploymentRequest, context: grpc.ServicerContext
    ) -> pb.GetDeploymentResponse:
        deployment = self._app.deployment(*convert.deployment_key(request.name))
        return pb.GetDeploymentResponse(deployment=convert.deployment_to_proto(deployment))

    def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: grpc.ServicerContext
    ) -> pb.ListDeploymentsResponse:
        tenant = names.tenant_of(request.parent)
        found, token = self._app.deployments(tenant, request.page_size, request.page_token)
        deployments = [convert.deployment_to_proto(deployment) for deployment in found]
        return pb.ListDeploymentsResponse(deployments=deployments, next_page_token=token)

    def UpdateDeployment(
        self, request: pb.UpdateDeploymentRequest, context: grpc.ServicerContext
    ) -> pb.UpdateDeploymentResponse:
        tenant, id = convert.deployment_key(request.deployment.name)
        deployment = self._app.update_deployment(
            convert.deployment_from_proto(request.deployment, tenant, id),
            convert.expected_revision(request.deployment),
        )
        return pb.UpdateDeploymentResponse(deployment=convert.deployment_to_proto(deployment))

    def MatchDeployments(
        self, request: pb.MatchDeploymentsRequest, context: grpc.ServicerContext
    ) -> pb.MatchDeploymentsResponse:
        tenant = names.tenant_of(request.parent)
        found = self._app.match_deployments(tenant, request.model, request.final)
        deployments = [convert.deployment_to_proto(deployment) for deployment in found]
        return pb.MatchDeploymentsResponse(deployments=deployments)

    def CreateRollout(
        self, request: pb.CreateRolloutRequest, context: grpc.ServicerContext
    ) -> pb.CreateRolloutResponse:
        rollout = self._app.create_rollout(
            names.tenant_of(request.parent),
            request.model,
            request.version,
            RequestKey(request.request_id, idempotency.request_digest(request)),
            telemetry.current_traceparent(),
        )
        return pb.CreateRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def GetRollout(
        self, request: pb.GetRolloutRequest, context: grpc.ServicerContext
    ) -> pb.GetRolloutResponse:
        rollout = self._app.rollout(*convert.rollout_key(request.name))
        return pb.GetRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def ListRollouts(
        self, request: pb.ListRolloutsRequest, context: grpc.ServicerContext
    ) -> pb.ListRolloutsResponse:
        found, token = self._app.rollouts(
            names.tenant_of(request.parent),
            request.model,
            request.page_size,
            request.page_token,
        )
        rollouts = [convert.rollout_to_proto(rollout) for rollout in found]
        return pb.ListRolloutsResponse(rollouts=rollouts, next_page_token=token)

    def PauseRollout(
        self, request: pb.PauseRolloutRequest, context: grpc.ServicerContext
    ) -> pb.PauseRolloutResponse:
        rollout = self._app.pause(*convert.rollout_key(request.name), paused=True)
        return pb.PauseRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def ResumeRollout(
        self, request: pb.ResumeRolloutRequest, context: grpc.ServicerContext
    ) -> pb.ResumeRolloutResponse:
        rollout = self._app.pause(*convert.rollout_key(request.name), paused=False)
        return pb.ResumeRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def PromoteRollout(
        self, request: pb.PromoteRolloutRequest, context: grpc.ServicerContext
    ) -> pb.PromoteRolloutResponse:
        rollout = self._app.promote(*convert.rollout_key(request.name))
        return pb.PromoteRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def ReverseRollout(
        self, request: pb.ReverseRolloutRequest, context: grpc.ServicerContext
    ) -> pb.ReverseRolloutResponse:
        rollout = self._app.reverse(*convert.rollout_key(request.name), request.reason)
        return pb.ReverseRolloutResponse(rollout=convert.rollout_to_proto(rollout))

    def WatchRoutes(
        self, request: pb.WatchRoutesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchRoutesResponse]:
        known = -1
        while context.is_active() and not self._draining.is_set():
            revision, routes = self._control.routes()
            if revision != known:
                known = revision
                found = [convert.route_to_proto(route) for route in routes]
                yield pb.WatchRoutesResponse(revision=revision, routes=found)
            # Another replica may be the one that writes, so the table itself is watched.
            self._draining.wait(_WATCH_SECONDS)

    def ReportAnswers(
        self, request: pb.ReportAnswersRequest, context: grpc.ServicerContext
    ) -> pb.ReportAnswersResponse:
        counters = [convert.traffic_from_proto(seen) for seen in request.answers]
        compared = [convert.compared_from_proto(seen) for seen in request.shadows]
        self._control.report_traffic(request.gateway, counters, compared)
        counts = [convert.counts_from_proto(seen) for seen in request.answers]
        self._control.evidence.report(request.gateway, counts)
        return pb.ReportAnswersResponse()

    def TuneServing(
        self, request: pb.TuneServingRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.TuneServingResponse]:
        if self._tunings is None:
            raise FailedPrecondition(
                "this registry has no endpoint to try settings on", reason="NO_ENDPOINT"
            )
        yield from self._tunings.tune_serving(request, context)

    def GetLineage(
        self, request: pb.GetLineageRequest, context: grpc.ServicerContext
    ) -> pb.GetLineageResponse:
        found = self._app.lineage(names.tenant_of(request.parent), request.name)
        return convert.lineage_to_proto(*found)
