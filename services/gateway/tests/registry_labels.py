"""The part of the fake registry that MLflow's client asks for: models, aliases, tags, rollouts."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from millrace.registry.v1 import service_pb2 as pb
from millrace_runtime.errors import FailedPrecondition, MillraceError, NotFound
from millrace_runtime.rich_status import to_status


class Labels:
    """Models by their full names; ``versions`` is the fake registry's."""

    versions: dict[str, Any]

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.rolled_out: list[Any] = []

    def add_model(self, tenant: str, id: str, **fields: Any) -> Any:
        name = f"tenants/{tenant}/models/{id}"
        moment = Timestamp(seconds=1_700_000_000 + len(self.known))
        self.known[name] = pb.Model(name=name, create_time=moment, **fields)
        return self.known[name]

    def clear_labels(self) -> None:
        self.known.clear()
        self.rolled_out.clear()

    async def GetModel(self, request: Any, context: Any) -> Any:
        return pb.GetModelResponse(model=await _of(self.known, request.name, context))

    async def ListModels(self, request: Any, context: Any) -> Any:
        prefix = f"{request.parent}/models/"
        names = sorted(name for name in self.known if name.startswith(prefix))
        begin = int(request.page_token or 0)
        end = begin + 2  # small pages: who reads the first alone is found out
        token = str(end) if end < len(names) else ""
        models = [self.known[name] for name in names[begin:end]]
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def GetVersion(self, request: Any, context: Any) -> Any:
        return pb.GetVersionResponse(version=await _of(self.versions, request.name, context))

    async def SetTags(self, request: Any, context: Any) -> Any:
        table = self.versions if "/versions/" in request.name else self.known
        found = await _of(table, request.name, context)
        for key in request.removed:
            found.tags.pop(key, None)
        found.tags.update(request.tags)
        return pb.SetTagsResponse(tags=found.tags)

    async def CreateRollout(self, request: Any, context: Any) -> Any:
        name = f"{request.parent}/models/{request.model}/versions/{request.version}"
        version = await _of(self.versions, name, context)
        if version.state == pb.VERSION_STATE_QUARANTINED:
            await _fail(context, FailedPrecondition("it is wrong", reason="VERSION_STATE"))
        if version.state == pb.VERSION_STATE_SERVING:
            await _fail(context, FailedPrecondition("it serves already", reason="VERSION_SERVES"))
        self.rolled_out.append(request)
        rollout = pb.Rollout(
            name=f"{request.parent}/rollouts/rollout-1",
            deployment=f"{request.parent}/deployments/deployment-1",
            model=request.model,
            to_version=request.version,
            state=pb.ROLLOUT_STATE_PENDING,
        )
        return pb.CreateRolloutResponse(rollout=rollout)


async def _of(table: dict[str, Any], name: str, context: Any) -> Any:
    if name not in table:
        await _fail(context, NotFound(f"there is no {name!r}"))
    return table[name]


async def _fail(context: Any, error: MillraceError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
