"""``/mlflow/…/model-versions``: versions of Millrace's registry, to MLflow's own client."""

import re
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import upstream
from millrace_gateway.rest import mlflow_search
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.mlflow_models import (
    Name,
    Tag,
    change_tags,
    get_model,
    get_version,
    version_number,
)
from millrace_gateway.rest.mlflow_shapes import (
    DESCRIPTION,
    PREFIX,
    model_of,
    model_version,
    version_fields,
    version_source,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime.errors import InvalidArgument, NotFound

ROUTER = router("mlflow", f"{PREFIX}/model-versions")

_SEARCHED = ("name", "version_number", "source_path")
_SORTED = ("name", "version_number", "creation_timestamp", "last_updated_timestamp")
_PAGE = 1000
_OF_ONE_MODEL = re.compile(r"\s*name\s*=\s*(?:'([^']+)'|\"([^\"]+)\")\s*", re.IGNORECASE)


class CreateVersion(RequestBody):
    name: Name
    source: str = ""
    run_id: str = ""
    tags: list[Tag] = Field(default=[])
    run_link: str = ""
    description: str = ""
    model_id: str = ""


class Of(RequestBody):
    """A version."""

    name: Name
    version: str


class UpdateVersion(Of):
    description: Annotated[str, Field(max_length=5000)] = ""


class TransitionStage(Of):
    stage: str
    archive_existing_versions: bool = False


class VersionTag(Of, Tag):
    """A tag of a version."""


class VersionTagKey(Of):
    key: str


@ROUTER.post("/create")
async def create_version(body: CreateVersion, caller: CallerOf) -> dict[str, Any]:
    """Refused: a version is an artifact that passed its gate."""
    raise InvalidArgument(
        f"a version of {body.name!r} cannot be made here: versions come from checkpoints, when "
        "they are compressed (POST /v1/compressions, or a deployment that tracks them)",
        field="source",
    )


@ROUTER.patch("/update")
async def update_version(body: UpdateVersion, caller: CallerOf) -> dict[str, Any]:
    """Set the description."""
    await change_tags(caller, _name(caller, body), {DESCRIPTION: body.description})
    return {"model_version": await _shown(caller, body.name, body.version)}


@ROUTER.post("/transition-stage")
async def transition_stage(body: TransitionStage, caller: CallerOf) -> dict[str, Any]:
    """Refused: MLflow has deprecated stages."""
    raise InvalidArgument(
        "there are no stages here, and MLflow has deprecated them; use aliases: "
        f"set_registered_model_alias({body.name!r}, 'champion', {body.version!r}) rolls the "
        "version out",
        field="stage",
    )


@ROUTER.delete("/delete")
async def delete_version(body: Of, caller: CallerOf) -> dict[str, Any]:
    """Refused: what once answered stays known."""
    await get_version(caller, body.name, body.version)
    raise InvalidArgument(
        "versions are history and stay; take one out of service for good by "
        f"POST /v1/versions/{body.name}@{body.version}/quarantine",
        field="version",
    )


@ROUTER.get("/get")
async def get_model_version(name: str, version: str, caller: CallerOf) -> dict[str, Any]:
    return {"model_version": await _shown(caller, name, version)}


@ROUTER.get("/get-download-uri")
async def get_download_uri(name: str, version: str, caller: CallerOf) -> dict[str, Any]:
    return {"artifact_uri": version_source(await get_version(caller, name, version))}


@ROUTER.get("/search")
async def search_versions(
    caller: CallerOf,
    filter: str = "",
    max_results: Annotated[int, Query(ge=1, le=200_000)] = 10_000,
    order_by: Annotated[list[str] | None, Query()] = None,
    page_token: str = "",
) -> dict[str, Any]:
    """By ``name``, ``version_number``, ``source_path`` and ``tags.…``, joined by AND; newest
    first."""
    matches = mlflow_search.matcher(filter, _SEARCHED)
    one = _OF_ONE_MODEL.fullmatch(filter)
    versions = await _all_versions(caller, (one[1] or one[2]) if one else "-")
    found = [version for version in versions if matches(version_fields(version))]
    found = mlflow_search.ordered(found, order_by or (), version_fields, _SORTED)
    page, token = mlflow_search.page(found, max_results, page_token)
    aliases = {name: await _aliases(caller, name) for name in {model_of(one) for one in page}}
    shown = [model_version(version, aliases[model_of(version)]) for version in page]
    return {"model_versions": shown, "next_page_token": token}


@ROUTER.post("/set-tag")
async def set_tag(body: VersionTag, caller: CallerOf) -> dict[str, Any]:
    await change_tags(caller, _name(caller, body), {body.key: body.value})
    return {}


@ROUTER.delete("/delete-tag")
async def delete_tag(body: VersionTagKey, caller: CallerOf) -> dict[str, Any]:
    await change_tags(caller, _name(caller, body), {}, body.key)
    return {}


def _name(caller: Caller, body: Of) -> str:
    number = version_number(body.version)
    return f"{caller.model_name(body.name)}/versions/{number}"


async def _shown(caller: Caller, name: str, version: str) -> dict[str, Any]:
    found = await get_version(caller, name, version)
    return model_version(found, await _aliases(caller, name))


async def _aliases(caller: Caller, name: str) -> dict[str, int]:
    """Of a model; none where it was deleted and its versions stayed."""
    try:
        return dict((await get_model(caller, name)).aliases)
    except NotFound:
        return {}


async def _all_versions(caller: Caller, model: str) -> list[pb.Version]:
    found: list[pb.Version] = []
    try:
        request = pb.ListVersionsRequest(parent=caller.model_name(model), page_size=_PAGE)
    except NotFound:  # nothing can have such a name
        return found
    while True:
        response = await upstream.call(caller.upstream.registry.ListVersions, request)
        found += response.versions
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token
