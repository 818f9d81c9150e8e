"""``/v1/prompts``: prompt templates with variables and few-shot examples, in versions.

Beyond the OpenAI API, which makes prompts in its dashboard only; how they are used is its own
(``prompt`` of ``/v1/responses``).
"""

from typing import Annotated, Any, Literal

import orjson
from fastapi import Path
from pydantic import BaseModel, Field

from millrace.data.v1 import prompts_pb2 as pb
from millrace_examples.prompt_template import (
    canonical_json,
    normal_template,
    template_mistakes,
    template_of,
)
from millrace_gateway import upstream
from millrace_gateway.rest import prompt_versions
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.generations import calling
from millrace_gateway.rest.listing import After, Limit, ListObject, page_of, page_size, token_after
from millrace_gateway.rest.prompt_reference import Variables, filled, find
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody, identifier, seconds
from millrace_runtime.errors import InvalidArgument

ROUTER = router("prompts", "/v1/prompts")

# How the API calls the fields of the service's requests.
_FIELDS = {"template_json": "messages"}
_PLACES = {"prompt.id": "", "prompt.version": "version"}
Number = Annotated[str, Path(max_length=20)]


class TemplateBody(RequestBody):
    """A template. Texts of ``messages`` may hold ``{{variables}}``."""

    messages: list[Any]
    variables: dict[str, Any] | None = Field(
        None, description="name → {default, description}; those that are not here must be given"
    )
    examples: list[Any] | None = Field(
        None, description="{input, output}, or {messages}; placed after the system messages"
    )
    tools: list[Any] | None = None


class CreatePrompt(TemplateBody):
    name: Annotated[str, Field(max_length=128)] | None = None


class PromptObject(BaseModel):
    id: str
    object: Literal["prompt"] = "prompt"
    created_at: int
    updated_at: int
    name: str
    latest_version: str


class PromptVersionObject(BaseModel):
    """One version; it never changes. ``id`` is its number."""

    id: str
    object: Literal["prompt.version"] = "prompt.version"
    prompt_id: str
    created_at: int
    digest: str
    messages: list[dict[str, Any]]
    variables: dict[str, dict[str, Any]]
    examples: list[dict[str, Any]]
    tools: list[dict[str, Any]]


class DeletedPrompt(BaseModel):
    id: str
    object: Literal["prompt.deleted"] = "prompt.deleted"
    deleted: Literal[True] = True


class RenderBody(RequestBody):
    version: str | None = None
    variables: Variables | None = None


class Rendering(BaseModel):
    """The messages that a request with these variables begins with."""

    object: Literal["prompt.rendering"] = "prompt.rendering"
    prompt_id: str
    version: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


@ROUTER.post("", response_model=PromptObject)
async def create_prompt(body: CreatePrompt, caller: CallerOf) -> PromptObject:
    """Make a prompt with its version 1."""
    request = pb.CreatePromptRequest(
        parent=caller.parent,
        display_name=body.name or "",
        template_json=_template_json(body),
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.prompts.CreatePrompt, request, _FIELDS)
    return _prompt(response.prompt)


@ROUTER.get("", response_model=ListObject[PromptObject])
async def list_prompts(caller: CallerOf, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """Newest first."""
    request = pb.ListPromptsRequest(
        parent=caller.parent, page_size=page_size(limit), page_token=token_after(after)
    )
    response = await upstream.call(caller.upstream.prompts.ListPrompts, request)
    return page_of([_prompt(one) for one in response.prompts], bool(response.next_page_token))


@ROUTER.get("/{prompt_id}", response_model=PromptObject)
async def get_prompt(prompt_id: str, caller: CallerOf) -> PromptObject:
    request = pb.GetPromptRequest(name=_name(caller, prompt_id))
    return _prompt((await upstream.call(caller.upstream.prompts.GetPrompt, request)).prompt)


@ROUTER.delete("/{prompt_id}", response_model=DeletedPrompt)
async def delete_prompt(prompt_id: str, caller: CallerOf) -> DeletedPrompt:
    """Delete a prompt with all its versions; other gateways may use it a minute longer."""
    name = _name(caller, prompt_id)
    await upstream.call(caller.upstream.prompts.DeletePrompt, pb.DeletePromptRequest(name=name))
    caller.gateway.prompts.forget(name)
    return DeletedPrompt(id=prompt_id)


@ROUTER.post("/{prompt_id}/versions", response_model=PromptVersionObject)
async def create_version(
    prompt_id: str, body: TemplateBody, caller: CallerOf
) -> PromptVersionObject:
    """Add a version, which is the newest from then on."""
    request = pb.CreatePromptVersionRequest(
        parent=_name(caller, prompt_id),
        template_json=_template_json(body),
        request_id=caller.request_id,
    )
    response = await upstream.call(caller.upstream.prompts.CreatePromptVersion, request, _FIELDS)
    return _version(prompt_id, response.version)


@ROUTER.get("/{prompt_id}/versions", response_model=ListObject[PromptVersionObject])
async def list_versions(
    prompt_id: str, caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Newest first."""
    request = pb.ListPromptVersionsRequest(
        parent=_name(caller, prompt_id),
        page_size=page_size(limit),
        page_token=token_after(after),
    )
    response = await upstream.call(caller.upstream.prompts.ListPromptVersions, request)
    items = [_version(prompt_id, one) for one in response.versions]
    return page_of(items, bool(response.next_page_token))


@ROUTER.get("/{prompt_id}/versions/{version}", response_model=PromptVersionObject)
async def get_version(prompt_id: str, version: Number, caller: CallerOf) -> PromptVersionObject:
    """A version by its number, or the newest: `latest`."""
    wanted = None if version == "latest" else version
    with calling(_PLACES):
        number = (await find(caller, prompt_id, wanted)).number
    request = pb.GetPromptVersionRequest(parent=_name(caller, prompt_id), number=number)
    response = await upstream.call(caller.upstream.prompts.GetPromptVersion, request)
    return _version(prompt_id, response.version)


@ROUTER.post("/{prompt_id}/render", response_model=Rendering)
async def render_prompt(prompt_id: str, body: RenderBody, caller: CallerOf) -> Rendering:
    """What a model is asked with these variables; nothing is generated."""
    with calling(_PLACES):
        version = await find(caller, prompt_id, body.version)
    return Rendering(
        prompt_id=prompt_id,
        version=str(version.number),
        messages=[dict(one) for one in filled(version.template, body.variables, "variables")],
        tools=list(version.template.tools),
    )


def _template_json(body: TemplateBody) -> str:
    """The template in its normal form.

    Raises:
        InvalidArgument: INVALID_PROMPT, naming the field.
    """
    document = body.model_dump(include=set(TemplateBody.model_fields), exclude_none=True)
    for place, message in template_mistakes(document):
        raise InvalidArgument(f"{place}: {message}", reason="INVALID_PROMPT", field=place)
    normal = normal_template(document)
    template = template_of(normal)
    # What a model cannot be asked with is refused now, and not when it is used.
    prompt_versions.spoken(template)
    prompt_versions.tools_of(template)
    return canonical_json(normal)


def _prompt(prompt: pb.Prompt) -> PromptObject:
    return PromptObject(
        id=identifier(prompt.name) or "",
        created_at=seconds(prompt.create_time),
        updated_at=seconds(prompt.update_time),
        name=prompt.display_name,
        latest_version=str(prompt.latest_version),
    )


def _version(prompt_id: str, version: pb.PromptVersion) -> PromptVersionObject:
    template = orjson.loads(version.template_json)
    return PromptVersionObject(
        id=str(version.number),
        prompt_id=prompt_id,
        created_at=seconds(version.create_time),
        digest=version.digest,
        messages=template["messages"],
        variables=template["variables"],
        examples=template.get("examples", []),
        tools=template.get("tools", []),
    )


def _name(caller: Caller, prompt_id: str) -> str:
    return caller.name("prompts", prompt_id, "prompt")
