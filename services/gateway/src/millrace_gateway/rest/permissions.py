"""``/v1/fine_tuning/checkpoints/{model}/permissions``: which other projects may ask a checkpoint.

Reference: https://platform.openai.com/docs/api-reference/fine-tuning/create-permission

A project is a tenant. Only an operator's key may ask, as there only an administrator's.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_gateway import upstream
from millrace_gateway.permissions import Page, Permission, Shared, require_operator
from millrace_gateway.rest.caller import Caller, CallerOf, no_such
from millrace_gateway.rest.listing import After, Limit, ListObject, page_of, page_size
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime.errors import InvalidArgument, NotFound

ROUTER = router("fine-tuning", "/v1/fine_tuning/checkpoints/{checkpoint}/permissions")

_MOST_PROJECTS = 100

Project = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


class CreatePermissions(RequestBody):
    project_ids: Annotated[list[Project], Field(min_length=1, max_length=_MOST_PROJECTS)]


class PermissionObject(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True


@ROUTER.post("", response_model=ListObject[PermissionObject])
async def create_permissions(
    checkpoint: str, body: CreatePermissions, caller: CallerOf
) -> dict[str, Any]:
    """Let projects ask this checkpoint, by its model's id; a project that may already may still."""
    shared = _shared(caller, checkpoint)
    await _require_tuned(caller, shared)
    for index, project in enumerate(body.project_ids):
        await _require_other(caller, shared, project, f"project_ids[{index}]")
    made = await caller.gateway.permissions.give(
        caller.principal, shared, list(dict.fromkeys(body.project_ids))
    )
    return page_of([_object(one) for one in made], has_more=False)


@ROUTER.get("", response_model=ListObject[PermissionObject])
async def list_permissions(
    checkpoint: str,
    caller: CallerOf,
    after: After = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str, Query(max_length=64)] = "",
) -> dict[str, Any]:
    """By when they were given, newest first unless `order` says otherwise."""
    shared = _shared(caller, checkpoint)
    page = Page(page_size(limit), after or "", order == "ascending", project_id)
    found, has_more = await caller.gateway.permissions.page(caller.principal, shared, page)
    if not found:
        await _require_tuned(caller, shared)
    return page_of([_object(one) for one in found], has_more)


@ROUTER.delete("/{permission_id}", response_model=PermissionDeleted)
async def delete_permission(
    checkpoint: str, permission_id: str, caller: CallerOf
) -> PermissionDeleted:
    """Take a permission back; the project's next request is refused."""
    shared = _shared(caller, checkpoint)
    caller.name("permissions", permission_id, "permission")
    await caller.gateway.permissions.take_back(caller.principal, shared, permission_id)
    return PermissionDeleted(id=permission_id)


def _shared(caller: Caller, checkpoint: str) -> Shared:
    """Whose it is stands in the model's id: ``ft:{base}:{tenant}:{suffix}:{unique}``.

    Raises:
        PermissionDenied: the caller is no operator.
        NotFound: nothing can have such an id.
    """
    require_operator(caller.principal)
    caller.model_name(checkpoint)
    parts = checkpoint.split(":ckpt-step-")[0].split(":")
    if parts[0] != "ft" or len(parts) < 5:
        raise no_such("fine-tuned checkpoint", checkpoint)
    return Shared(parts[-3], checkpoint)


async def _require_tuned(caller: Caller, shared: Shared) -> None:
    """
    Raises:
        NotFound: no fine-tuning job has made such a checkpoint, or nothing of it is servable.
    """
    request = registry_pb2.ResolveVersionRequest(
        parent=f"tenants/{shared.tenant}", reference=shared.reference
    )
    try:
        found = await upstream.call(caller.upstream.registry.ResolveVersion, request)
    except (NotFound, InvalidArgument):
        raise no_such("fine-tuned checkpoint", shared.reference) from None
    if "/jobs/" not in found.version.checkpoint.name:
        raise no_such("fine-tuned checkpoint", shared.reference)


async def _require_other(caller: Caller, shared: Shared, project: str, field: str) -> None:
    """
    Raises:
        InvalidArgument: there is no such project, or it owns the checkpoint.
    """
    if project == shared.tenant:
        raise InvalidArgument(f"{field}: project {project!r} owns this checkpoint", field=field)
    keys = caller.gateway.keys
    known, _ = await asyncio.to_thread(keys.list, caller.principal, project, 1, "")
    if not known:
        raise InvalidArgument(
            f"{field}: there is no project {project!r}; a project is made by its first key",
            reason="PROJECT_NOT_FOUND",
            field=field,
        )


def _object(permission: Permission) -> PermissionObject:
    return PermissionObject(
        id=permission.id,
        created_at=int(permission.create_time.timestamp()),
        project_id=permission.project,
    )
