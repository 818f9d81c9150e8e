"""``/v1/chat/completions``."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, Field

from millrace_gateway import chat_template, generation
from millrace_gateway.generation import Generation
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.generations import (
    EventStream,
    SamplingBody,
    TokenLimit,
    Usage,
    event,
    fingerprint,
    json_answer,
    usage,
    while_connected,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_gateway.route import Target
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("chat")


class TextPart(RequestBody):
    type: Literal["text"]
    text: str


class Message(RequestBody):
    """A text message; the parts of its content are joined."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class ResponseFormat(RequestBody):
    type: Literal["text"]


class ChatRequest(SamplingBody):
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: TokenLimit | None = None
    metadata: dict[str, str] | None = None
    # Not supported yet: they are accepted when they ask for nothing, and else refused by name.
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Hints of the OpenAI API that have no effect on an answer here.
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """``model`` names the version that answered; ``system_fingerprint`` is its artifact's."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str


@ROUTER.post(
    "/v1/chat/completions",
    response_model=None,
    responses={
        200: {
            "model": ChatCompletion,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def create_chat_completion(request: Request, body: ChatRequest, caller: CallerOf) -> Response:
    """Answer a chat, at once or as a stream of server-sent events."""
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
    completion = {
        "id": asked.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": started.route.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": started.finish_reason,
            }
        ],
        "usage": usage(started),
        "system_fingerprint": fingerprint(started),
    }
    return json_answer(completion, started)


async def _chunks(body: ChatRequest, started: Generation) -> AsyncIterator[bytes]:
    base: dict[str, Any] = {
        "id": started.request.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": started.route.model,
        "system_fingerprint": fingerprint(started),
    }
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    first = {"role": "assistant", "content": "", "refusal": None}
    yield event({**base, **extra, "choices": [_choice(first, None)]})
    # A token's chunk is its text between two halves that are encoded once.
    before, after = orjson.dumps(
        {**base, **extra, "choices": [_choice({"content": "\0"}, None)]}
    ).split(b'"\\u0000"')
    before, after = b"data: " + before, after + b"\n\n"
    async for delta in started.deltas():
        if delta.text:
            yield before + orjson.dumps(delta.text) + after
    yield event({**base, **extra, "choices": [_choice({}, started.finish_reason)]})
    if body.wants_usage:
        yield event({**base, "choices": [], "usage": usage(started)})


def _choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _asked(caller: Caller, body: ChatRequest) -> generation.Request:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidArgument(
            "give 'max_tokens' or 'max_completion_tokens', not both", field="max_tokens"
        )
    messages = [_message(message) for message in body.messages]

    def prompt(target: Target) -> str:
        return chat_template.render(
            target.chat_template,
            messages,
            bos_token=target.bos_token,
            eos_token=target.eos_token,
        )

    sampling = body.sampling()
    sampling["max_tokens"] = body.max_completion_tokens or body.max_tokens
    return generation.Request(
        id=names.new_id("chatcmpl"),
        tenant=caller.tenant,
        operation="chat",
        model=body.model,
        make_prompt=prompt,
        sampling=sampling,
    )


def _message(message: Message) -> dict[str, str]:
    # `developer` is OpenAI's newer word for `system`; models are trained on the older.
    role = "system" if message.role == "developer" else message.role
    rendered = {"role": role, "content": _text(message.content)}
    if message.name is not None:
        rendered["name"] = message.name
    return rendered


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
