"""``/v1/completions``: text that goes on."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Field

from millrace_gateway import generation
from millrace_gateway.generation import Generation
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.generations import (
    EventStream,
    SamplingBody,
    Usage,
    event,
    fingerprint,
    json_answer,
    usage,
    while_connected,
)
from millrace_gateway.rest.routing import router
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("completions")

_DEFAULT_MAX_TOKENS = 16  # as the OpenAI API has it

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(min_length=1)]


class CompletionRequest(SamplingBody):
    """``prompt`` is a text, or its token ids; a list may hold one text."""

    prompt: Text | Annotated[list[Text] | list[TokenId], Field(min_length=1)]
    # Not supported yet: they are accepted when they ask for nothing, and else refused by name.
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None


class Choice(BaseModel):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str


@ROUTER.post(
    "/v1/completions",
    response_model=None,
    responses={
        200: {
            "model": Completion,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create_completion(
    request: Request, body: CompletionRequest, caller: CallerOf
) -> Response:
    """Continue a text, at once or as a stream of server-sent events."""
    asked = _asked(caller, body)
    if body.stream:
        started = await while_connected(request, caller.gateway.generator.start(asked))
        if started is None:
            return Response(status_code=499)
        return EventStream(_chunks(body, started), started)
    answer = await while_connected(request, _answer(caller, asked))
    return answer or Response(status_code=499)


async def _answer(caller: Caller, asked: generation.Request) -> Response:
    started = await caller.gateway.generator.start(asked)
    text = await generation.collect(started)
    choices = [_choice(text, started.finish_reason)]
    return json_answer({**_base(started), "choices": choices, "usage": usage(started)}, started)


async def _chunks(body: CompletionRequest, started: Generation) -> AsyncIterator[bytes]:
    base = _base(started)
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    async for delta in started.deltas():
        if delta.text or delta.finish_reason:
            choice = _choice(delta.text, delta.finish_reason or None)
            yield event({**base, **extra, "choices": [choice]})
    if body.wants_usage:
        yield event({**base, "choices": [], "usage": usage(started)})


def _base(started: Generation) -> dict[str, Any]:
    return {
        "id": started.request.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": started.route.model,
        "system_fingerprint": fingerprint(started),
    }


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _asked(caller: Caller, body: CompletionRequest) -> generation.Request:
    prompt = _prompt(body.prompt)
    sampling = body.sampling()
    sampling["max_tokens"] = body.max_tokens or _DEFAULT_MAX_TOKENS
    return generation.Request(
        id=names.new_id("cmpl"),
        tenant=caller.tenant,
        operation="text_completion",
        model=body.model,
        make_prompt=lambda _target: prompt,
        sampling=sampling,
    )


def _prompt(prompt: str | list[str] | list[int]) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    texts = [item for item in prompt if isinstance(item, str)]
    if not texts:
        return [item for item in prompt if isinstance(item, int)]
    if len(texts) > 1:
        raise InvalidArgument(
            "more than one prompt in a request is not supported yet; send one each",
            reason="UNSUPPORTED_VALUE",
            field="prompt",
        )
    return texts[0]
