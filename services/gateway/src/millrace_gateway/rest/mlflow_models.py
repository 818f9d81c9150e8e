"""``/mlflow/…/registered-models``: Millrace's registry, to MLflow's own client.

Models come from checkpoints, so that none can be made or renamed here. The alias ``champion`` is
what a settled rollout sets; to set it is to ask for a rollout.
"""

import asyncio
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest import mlflow_search
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.mlflow_shapes import (
    DESCRIPTION,
    OWN_TAGS,
    PREFIX,
    model_fields,
    model_version,
    registered_model,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

ROUTER = router("mlflow", f"{PREFIX}/registered-models")

CHAMPION = "champion"
_FIELDS = ("name", "creation_timestamp", "last_updated_timestamp")
_PAGE = 1000
# Reads of newest versions at the same time, of one search.
_TOGETHER = 8
_IS_SO_ALREADY = ("VERSION_SERVES", "ROLLOUT_EXISTS")

Name = Annotated[str, Field(min_length=1, max_length=256)]
MaxResults = Annotated[int, Query(ge=1, le=1000)]


class Tag(RequestBody):
    key: Annotated[str, Field(min_length=1, max_length=250)]
    value: Annotated[str, Field(max_length=5000)] = ""


class Named(RequestBody):
    name: Name


class CreateModel(Named):
    tags: list[Tag] = Field(default=[])
    description: str = ""
    deployment_job_id: str = ""


class RenameModel(Named):
    new_name: str


class UpdateModel(Named):
    description: Annotated[str, Field(max_length=5000)] = ""


class LatestVersions(Named):
    stages: list[str] = Field(default=[])


class ModelTag(Named, Tag):
    """A tag of a model."""


class TagKey(Named):
    key: str


class Alias(Named):
    alias: str


class SetAlias(Alias):
    version: str


@ROUTER.post("/create")
async def create_model(body: CreateModel, caller: CallerOf) -> dict[str, Any]:
    """Refused: a model is there when its first checkpoint is."""
    try:
        await get_model(caller, body.name)
    except NotFound:
        raise InvalidArgument(
            f"model {body.name!r} cannot be made here: models come from checkpoints; train one "
            "(POST /v1/training/runs) or tune one (POST /v1/fine_tuning/jobs)",
            field="name",
        ) from None
    raise AlreadyExists(
        f"Registered Model (name={body.name}) already exists.", reason="ALREADY_EXISTS"
    )


@ROUTER.post("/rename")
async def rename_model(body: RenameModel, caller: CallerOf) -> dict[str, Any]:
    """Refused: deployments, runs and clients know a model by its name."""
    await get_model(caller, body.name)
    raise InvalidArgument("a model keeps its name; set an alias or a tag", field="new_name")


@ROUTER.patch("/update")
async def update_model(body: UpdateModel, caller: CallerOf) -> dict[str, Any]:
    """Set the description."""
    await change_tags(caller, caller.model_name(body.name), {DESCRIPTION: body.description})
    return {"registered_model": await _registered(caller, await get_model(caller, body.name))}


@ROUTER.delete("/delete")
async def delete_model(body: Named, caller: CallerOf) -> dict[str, Any]:
    """Stop serving a model and forget it; the history of its versions stays."""
    request = pb.DeleteModelRequest(name=caller.model_name(body.name))
    await upstream.call(caller.upstream.registry.DeleteModel, request)
    await caller.gateway.permissions.forget(caller.tenant, body.name)
    return {}


@ROUTER.get("/get")
async def get_registered_model(name: str, caller: CallerOf) -> dict[str, Any]:
    return {"registered_model": await _registered(caller, await get_model(caller, name))}


@ROUTER.get("/search")
async def search_models(
    caller: CallerOf,
    filter: str = "",
    max_results: MaxResults = 100,
    order_by: Annotated[list[str] | None, Query()] = None,
    page_token: str = "",
) -> dict[str, Any]:
    """By ``name`` and ``tags.…``, with =, !=, LIKE, ILIKE and AND."""
    matches = mlflow_search.matcher(filter, ("name",))
    found = [model for model in await _all_models(caller) if matches(model_fields(model))]
    found = mlflow_search.ordered(found, order_by or (), model_fields, _FIELDS)
    page, token = mlflow_search.page(found, max_results, page_token)
    turns = asyncio.Semaphore(_TOGETHER)

    async def shown(model: pb.Model) -> dict[str, Any]:
        async with turns:
            return await _registered(caller, model)

    models = await asyncio.gather(*(shown(model) for model in page))
    return {"registered_models": models, "next_page_token": token}


@ROUTER.get("/get-latest-versions")
async def get_latest_versions(
    name: str, caller: CallerOf, stages: Annotated[list[str] | None, Query()] = None
) -> dict[str, Any]:
    """The newest version: without stages there is one alone that is the latest."""
    _require_no_stage(stages or [])
    model = await get_model(caller, name)
    newest = await _newest(caller, model)
    return {"model_versions": [] if newest is None else [model_version(newest, model.aliases)]}


@ROUTER.post("/get-latest-versions")
async def latest_versions(body: LatestVersions, caller: CallerOf) -> dict[str, Any]:
    return await get_latest_versions(body.name, caller, body.stages)


@ROUTER.post("/set-tag")
async def set_tag(body: ModelTag, caller: CallerOf) -> dict[str, Any]:
    await change_tags(caller, caller.model_name(body.name), {body.key: body.value})
    return {}


@ROUTER.delete("/delete-tag")
async def delete_tag(body: TagKey, caller: CallerOf) -> dict[str, Any]:
    await change_tags(caller, caller.model_name(body.name), {}, body.key)
    return {}


@ROUTER.get("/alias")
async def get_by_alias(name: str, alias: str, caller: CallerOf) -> dict[str, Any]:
    model = await get_model(caller, name)
    if alias not in model.aliases:
        raise InvalidArgument(f"Registered model alias {alias} not found.", field="alias")
    version = await get_version(caller, name, str(model.aliases[alias]))
    return {"model_version": model_version(version, model.aliases)}


@ROUTER.post("/alias")
async def set_alias(body: SetAlias, caller: CallerOf) -> dict[str, Any]:
    """Let an alias mean a version. ``champion``: roll that version out, by the deployment's
    strategy; the alias follows when the rollout has settled."""
    number = version_number(body.version)
    if body.alias == CHAMPION:
        await _roll_out(caller, body.name, number)
        return {}
    request = pb.SetAliasRequest(
        name=caller.model_name(body.name), alias=body.alias, version=number
    )
    await upstream.call(caller.upstream.registry.SetAlias, request)
    return {}


@ROUTER.delete("/alias")
async def delete_alias(body: Alias, caller: CallerOf) -> dict[str, Any]:
    request = pb.SetAliasRequest(name=caller.model_name(body.name), alias=body.alias)
    await upstream.call(caller.upstream.registry.SetAlias, request)
    return {}


async def get_model(caller: Caller, name: str) -> pb.Model:
    """
    Raises:
        NotFound: with MLflow's own words.
    """
    try:
        request = pb.GetModelRequest(name=caller.model_name(name))
        return (await upstream.call(caller.upstream.registry.GetModel, request)).model
    except NotFound as error:
        raise NotFound(f"Registered Model with name={name} not found") from error


async def get_version(caller: Caller, name: str, version: str) -> pb.Version:
    """
    Raises:
        NotFound: with MLflow's own words.
        InvalidArgument: ``version`` is no number.
    """
    number = version_number(version)
    try:
        request = pb.GetVersionRequest(name=f"{caller.model_name(name)}/versions/{number}")
        return (await upstream.call(caller.upstream.registry.GetVersion, request)).version
    except NotFound as error:
        raise NotFound(f"Model Version (name={name}, version={number}) not found") from error


def version_number(text: str) -> int:
    """
    Raises:
        InvalidArgument: it is no number, or no version can have it.
    """
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**18):
        raise InvalidArgument(f"Model version must be an integer, got {text!r}", field="version")
    return int(text)


async def change_tags(caller: Caller, name: str, tags: dict[str, str], *removed: str) -> None:
    """
    Raises:
        NotFound
        InvalidArgument: a tag is the mesh's own.
    """
    for key in (*tags, *removed):
        if key.startswith(OWN_TAGS):
            raise InvalidArgument(f"tags {OWN_TAGS}… are the mesh's own", field="key")
    request = pb.SetTagsRequest(name=name, tags=tags, removed=removed)
    await upstream.call(caller.upstream.registry.SetTags, request)


async def _roll_out(caller: Caller, name: str, number: int) -> None:
    request = pb.CreateRolloutRequest(
        parent=caller.parent, model=name, version=number, request_id=caller.request_id
    )
    try:
        await upstream.call(caller.upstream.registry.CreateRollout, request)
    except FailedPrecondition as error:
        if error.reason not in _IS_SO_ALREADY:
            raise


async def _all_models(caller: Caller) -> list[pb.Model]:
    found: list[pb.Model] = []
    request = pb.ListModelsRequest(parent=caller.parent, page_size=_PAGE)
    while True:
        response = await upstream.call(caller.upstream.registry.ListModels, request)
        found += response.models
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token


async def _registered(caller: Caller, model: pb.Model) -> dict[str, Any]:
    return registered_model(model, await _newest(caller, model))


async def _newest(caller: Caller, model: pb.Model) -> pb.Version | None:
    request = pb.ListVersionsRequest(parent=model.name, page_size=1)
    response = await upstream.call(caller.upstream.registry.ListVersions, request)
    return response.versions[0] if response.versions else None


def _require_no_stage(stages: list[str]) -> None:
    for stage in stages:
        if stage.lower() != "none":
            raise InvalidArgument(
                f"there are no stages here, and MLflow has deprecated them ({stage!r}); use "
                "aliases: models:/NAME@champion is what serves",
                field="stages",
            )
