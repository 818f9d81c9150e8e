"""``/v1/models``: what can be asked; and ``/v1/versions``: what it is made of.

Reference: https://platform.openai.com/docs/api-reference/models
"""

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from millrace.compressor.v1.service_pb2 import Target
from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway import route, upstream
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.measurements import MeasurementsObject, measurements
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import (
    Content,
    Int64,
    RequestBody,
    content,
    enum_word,
    identifier,
    seconds,
)
from millrace_runtime.errors import FailedPrecondition, NotFound

ROUTER = router("models")


class Markdown(PlainTextResponse):
    """UTF-8 (RFC 7763)."""

    media_type = "text/markdown"


class ServedVersion(BaseModel):
    """A loaded version. ``share`` is its part of the requests to the model."""

    version: int
    share: float
    artifact: str
    context_length: int


class Model(BaseModel):
    """A model that is served, or a checkpoint of it (``model:ckpt-step-N``).

    The last three are beyond the OpenAI API: ``versions`` are loaded now; ``checkpoint_steps``
    are those that can be asked for, and are loaded then.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: None = None
    versions: list[ServedVersion]
    aliases: dict[str, int]
    checkpoint_steps: list[int]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


class SetAlias(RequestBody):
    """``version`` 0 removes the alias."""

    alias: str
    version: Annotated[Int64, Field(ge=0)]


class Aliases(BaseModel):
    id: str
    object: Literal["model.aliases"] = "model.aliases"
    aliases: dict[str, int]


class Version(BaseModel):
    """One servable artifact of a model. Its id is what chat accepts as ``model``."""

    id: str
    object: Literal["version"] = "version"
    created_at: int
    model: str
    version: int
    status: str
    status_reason: str | None
    target: str
    artifact: Content | None
    checkpoint: str
    checkpoint_step: int
    checkpoint_final: bool
    compression: str | None
    measurements: MeasurementsObject
    tags: dict[str, str]


class Quarantine(RequestBody):
    reason: Annotated[str, Field(min_length=1, max_length=1024)]


@ROUTER.get("/v1/models", response_model=ListObject[Model])
async def list_models(caller: CallerOf) -> dict[str, Any]:
    """The models that can be asked now, tuned ones too, each with its loaded checkpoints."""
    routes = caller.gateway.generator.routes.of_tenant(caller.tenant)
    found = [one for known in routes for one in (_model(known), *_checkpoints(known))]
    return page_of([*found, *_shared_with(caller)], has_more=False)


@ROUTER.get("/v1/models/{model}", response_model=Model)
async def get_model(model: str, caller: CallerOf) -> Model:
    named = caller.gateway.generator.routes.named(caller.tenant, model)
    if named.route.tenant != caller.tenant:
        return _shared(named, model)
    if named.is_step:
        return _checkpoint(named.route, model, int(named.pinned))
    if named.pinned:
        route.candidates(named.route, named.pinned)
    return _model(named.route)


@ROUTER.get("/v1/models/{model}/card", response_class=Markdown)
async def get_card(model: str, caller: CallerOf) -> Markdown:
    """What the model is made of and how well it does, as Hugging Face's hub shows it.

    ``model`` may be whatever chat accepts, and a version that does not serve. Tuned models have
    a card.
    """
    card = await caller.gateway.tokenizers.card(await resolve(caller, model))
    if card is None:
        raise NotFound(f"The model has no card: {model!r}; tuned models have one", field="model")
    return Markdown(card)


@ROUTER.delete("/v1/models/{model}", response_model=ModelDeleted)
async def delete_model(model: str, caller: CallerOf) -> ModelDeleted:
    """Stop serving a model and forget it; the history of its versions stays."""
    request = pb.DeleteModelRequest(name=caller.model_name(model))
    whole, is_step, _ = model.rpartition(":ckpt-step-")
    try:
        await upstream.call(caller.upstream.registry.DeleteModel, request)
    except NotFound as error:
        if not is_step:
            raise
        raise FailedPrecondition(
            f"{model!r} is a checkpoint, and goes with its model; delete {whole!r}",
            reason="NOT_A_MODEL",
            field="model",
        ) from error
    await caller.gateway.permissions.forget(caller.tenant, model)
    return ModelDeleted(id=model)


@ROUTER.post("/v1/models/{model}/aliases", response_model=Aliases)
async def set_alias(model: str, body: SetAlias, caller: CallerOf) -> Aliases:
    """Let ``model@alias`` mean a version."""
    request = pb.SetAliasRequest(
        name=caller.model_name(model), alias=body.alias, version=body.version
    )
    response = await upstream.call(caller.upstream.registry.SetAlias, request)
    return Aliases(id=model, aliases=dict(response.model.aliases))


@ROUTER.get("/v1/versions", response_model=ListObject[Version], tags=["versions"])
async def list_versions(
    caller: CallerOf,
    model: Annotated[str | None, Query(description="Only this model's.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Versions, newest first, whether they serve or not."""
    request = pb.ListVersionsRequest(
        parent=caller.model_name(model or "-"),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.registry.ListVersions, request)
    items = [_version(caller, version) for version in response.versions]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/v1/versions/{reference}", response_model=Version, tags=["versions"])
async def get_version(reference: str, caller: CallerOf) -> Version:
    """The version that ``model``, ``model@7``, ``model@alias`` or ``model:ckpt-step-400`` means."""
    return _version(caller, await resolve(caller, reference))


@ROUTER.post("/v1/versions/{reference}/quarantine", response_model=Version, tags=["versions"])
async def quarantine_version(reference: str, body: Quarantine, caller: CallerOf) -> Version:
    """Take a version out of service, for good."""
    found = await resolve(caller, reference)
    request = pb.QuarantineVersionRequest(name=found.name, reason=body.reason)
    response = await upstream.call(caller.upstream.registry.QuarantineVersion, request)
    return _version(caller, response.version)


async def resolve(caller: Caller, reference: str) -> pb.Version:
    """What a reference means now; the registry knows also versions that do not serve."""
    request = pb.ResolveVersionRequest(parent=caller.parent, reference=reference)
    response = await upstream.call(caller.upstream.registry.ResolveVersion, request)
    return response.version


def _model(found: route.Route) -> Model:
    return Model(
        id=found.model,
        created=found.created_seconds,
        owned_by=found.tenant,
        versions=[_served(target) for target in found.targets],
        aliases=dict(found.aliases),
        checkpoint_steps=sorted(found.steps),
    )


def _checkpoints(found: route.Route) -> list[Model]:
    """Those that are loaded, oldest first."""
    return [
        _checkpoint(found, f"{found.model}:ckpt-step-{step}", version)
        for step, version in sorted(found.steps.items())
        if found.has_loaded(version)
    ]


def _checkpoint(found: route.Route, id: str, version: int) -> Model:
    return Model(
        id=id,
        created=found.created_seconds,
        owned_by=found.tenant,
        versions=[_served(target) for target in found.targets if target.version == version],
        aliases={alias: number for alias, number in found.aliases.items() if number == version},
        checkpoint_steps=[],
    )


def _shared_with(caller: Caller) -> list[Model]:
    """What other projects let this one use, and serve."""
    routes, found = caller.gateway.generator.routes, []
    for name in routes.shared_with(caller.tenant):
        with suppress(NotFound):
            named = routes.named(caller.tenant, name)
            found.append(_shared(named, name))
    return [one for one in found if one.owned_by != caller.tenant]


def _shared(named: route.Named, id: str) -> Model:
    """Another's; its aliases and other checkpoints are not for this one to use."""
    if named.is_step:
        found = _checkpoint(named.route, id, int(named.pinned))
    else:
        found = _model(named.route)
    return found.model_copy(update={"aliases": {}, "checkpoint_steps": []})


def _served(target: route.Target) -> ServedVersion:
    return ServedVersion(
        version=target.version,
        share=target.share,
        artifact=target.artifact_digest,
        context_length=target.context_length,
    )


def _version(caller: Caller, version: pb.Version) -> Version:
    model = version.name.split("/")[3]
    return Version(
        id=f"{model}@{version.number}",
        created_at=seconds(version.create_time),
        model=model,
        version=version.number,
        status=enum_word(pb.VersionState, version.state, "VERSION_STATE_"),
        status_reason=version.state_reason or None,
        target=enum_word(Target, version.target, "TARGET_"),
        artifact=content(version.artifact),
        checkpoint=caller.relative(version.checkpoint.name),
        checkpoint_step=version.checkpoint.step,
        checkpoint_final=version.checkpoint.final,
        compression=identifier(version.compression),
        measurements=measurements(version.measurements),
        tags=dict(version.tags),
    )
