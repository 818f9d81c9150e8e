"""The gRPC face of recalls: convert, call, convert."""

from dataclasses import asdict
from datetime import datetime
from typing import Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from millrace.registry.v1 import recalls_pb2 as pb
from millrace.registry.v1 import recalls_pb2_grpc, service_pb2
from millrace_registry import convert
from millrace_registry.domain import RequestKey, VersionState
from millrace_registry.recall import Action, Cause, Outcome, Recall, Recalled, Sought
from millrace_registry.recall_app import RecallApp, Wish
from millrace_runtime import idempotency, names

RECALL_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RecallService"].full_name
_RECALL_NAME = "tenants/{tenant}/recalls/{recall}"
_ACTIONS = {a: pb.RecallAction.Value(f"RECALL_ACTION_{a.value}") for a in Action}
_ACTION_OF = {int(number): action for action, number in _ACTIONS.items()}
_OUTCOMES = {o: pb.RecallOutcome.Value(f"RECALL_OUTCOME_{o.value}") for o in Outcome}


class Registers(Protocol):
    """Another servicer of the stage."""

    def register(self, server: grpc.Server) -> None: ...


class RecallServicer(recalls_pb2_grpc.RecallServiceServicer):
    """``millrace.registry.v1.RecallService``; requests were validated by the interceptor.

    ``others`` are registered with it.
    """

    def __init__(self, recalls: RecallApp, *others: Registers) -> None:
        self._recalls = recalls
        self._others = others

    def register(self, server: grpc.Server) -> None:
        for other in self._others:
            other.register(server)
        recalls_pb2_grpc.add_RecallServiceServicer_to_server(self, server)

    def CreateRecall(
        self, request: pb.CreateRecallRequest, context: grpc.ServicerContext
    ) -> pb.CreateRecallResponse:
        wish = Wish(
            tenant=names.tenant_of(request.parent),
            action=_ACTION_OF[request.action],
            reason=request.reason,
            causes=tuple(map(_cause, request.causes)),
            unindexed=tuple(request.unindexed),
            sought=Sought(tuple(request.hashes), request.file),
        )
        key = RequestKey(request.request_id, idempotency.request_digest(request))
        return pb.CreateRecallResponse(recall=_recall(self._recalls.create(wish, key)))

    def GetRecall(
        self, request: pb.GetRecallRequest, context: grpc.ServicerContext
    ) -> pb.GetRecallResponse:
        parts = names.parse(_RECALL_NAME, request.name)
        found = self._recalls.get(parts["tenant"], parts["recall"])
        return pb.GetRecallResponse(recall=_recall(found))

    def ListRecalls(
        self, request: pb.ListRecallsRequest, context: grpc.ServicerContext
    ) -> pb.ListRecallsResponse:
        tenant = names.tenant_of(request.parent)
        found, token = self._recalls.page(tenant, request.page_size, request.page_token)
        return pb.ListRecallsResponse(recalls=map(_recall, found), next_page_token=token)

    def LiftRecall(
        self, request: pb.LiftRecallRequest, context: grpc.ServicerContext
    ) -> pb.LiftRecallResponse:
        parts = names.parse(_RECALL_NAME, request.name)
        lifted = self._recalls.lift(parts["tenant"], parts["recall"], request.reason)
        return pb.LiftRecallResponse(recall=_recall(lifted))


def _cause(message: pb.RecallCause) -> Cause:
    return Cause(
        name=message.name,
        digest=message.digest,
        is_heldout=message.held_out,
        row_count=message.row_count,
        hashes=tuple(message.hashes),
    )


def _recall(recall: Recall) -> pb.Recall:
    return pb.Recall(
        name=recall.name,
        action=_ACTIONS[recall.action],
        reason=recall.reason,
        create_time=convert.timestamp(recall.create_time),
        causes=[_cause_message(cause) for cause in recall.causes],
        unindexed=recall.unindexed,
        nodes=[service_pb2.LineageNode(**asdict(node)) for node in recall.nodes],
        edges=[service_pb2.LineageEdge(**asdict(edge)) for edge in recall.edges],
        versions=[_recalled(recall.tenant, version) for version in recall.versions],
        lift_time=_moment(recall.lift_time),
        lift_reason=recall.lift_reason,
    )


def _moment(moment: datetime | None) -> Timestamp | None:
    return None if moment is None else convert.timestamp(moment)


def _cause_message(cause: Cause) -> pb.RecallCause:
    return pb.RecallCause(
        name=cause.name,
        digest=cause.digest,
        held_out=cause.is_heldout,
        row_count=cause.row_count,
        hashes=cause.hashes,
        join_time=_moment(cause.join_time),
    )


def _recalled(tenant: str, recalled: Recalled) -> pb.RecalledVersion:
    met = recalled.met
    return pb.RecalledVersion(
        name=f"tenants/{tenant}/models/{met.model}/versions/{met.number}",
        state_before=_state(met.state_before),
        was_live=met.was_live,
        outcome=_OUTCOMES[met.outcome],
        successor=met.successor,
        state=_state(recalled.state),
        is_live=recalled.is_live,
    )


def _state(state: VersionState) -> service_pb2.VersionState.ValueType:
    return service_pb2.VersionState.Value(f"VERSION_STATE_{state.value}")
