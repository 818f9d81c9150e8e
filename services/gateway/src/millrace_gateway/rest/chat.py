"""``/v1/chat/completions``."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Literal

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

from millrace_gateway import bundle, generation
from millrace_gateway.bundle import Bundle
from millrace_gateway.deadline import Deadline
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.conversation import Conversation, Messages, rendered
from millrace_gateway.rest.deadlines import PARAMETER, deadline_of
from millrace_gateway.rest.formats import ResponseFormat, engine_format
from millrace_gateway.rest.generations import (
    AlternativeCount,
    EventStream,
    SamplingBody,
    TokenLimit,
    Usage,
    calling,
    event,
    fingerprint,
    json_answer,
    missing,
    repeated,
    told,
    usage,
    while_connected,
)
from millrace_gateway.rest.logprobs import ChatLogprobs, chat_logprobs
from millrace_gateway.rest.prompt_reference import PromptReference, PromptUse, use
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.tools import ToolChoice, ToolPlan, Tools, answer_format, plan
from millrace_gateway.tool_calls import ToolCall, ToolCallReader
from millrace_gateway.triton import Delta
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("chat")


class ChatRequest(SamplingBody):
    """``prompt`` is beyond the OpenAI API: its messages come first, and others may be left out."""

    messages: Messages | None = None
    prompt: PromptReference | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: AlternativeCount | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # Not supported: they are accepted when they ask for nothing, and else refused by name.
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    # A hint of the OpenAI API that has no effect on an answer here.
    prompt_cache_key: str | None = None
    # Who asks: an A/B test keeps him on his side.
    safety_identifier: str | None = None


class Function(BaseModel):
    name: str
    arguments: str


class Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: Function


class AssistantMessage(BaseModel):
    """``tool_calls`` is there when functions are called; ``content`` may be null then."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | None = None


class Choice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """``model`` names the version that answered; ``system_fingerprint`` is its artifact's."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default", "flex", "priority"]


@ROUTER.post(
    "/v1/chat/completions",
    response_model=None,
    responses={
        200: {
            "model": ChatCompletion,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
    openapi_extra=PARAMETER,
)
async def create_chat_completion(request: Request, body: ChatRequest, caller: CallerOf) -> Response:
    """Answer a chat, at once or as a stream of server-sent events."""
    _check(body)
    prompt = await use(caller, body.prompt)
    wanted = prompt.tools if body.tools is None else body.tools
    tools = plan(wanted, body.tool_choice, body.parallel_tool_calls)
    deadline = deadline_of(request, bool(body.stream))
    asked = repeated(_asked(caller, body, prompt, tools, deadline), body.n or 1)
    begin = partial(bundle.start, caller.gateway.generator, asked, repeats=len(asked))
    with calling(tools.fields):
        if body.stream:
            started = await while_connected(request, begin())
            if started is None:
                return Response(status_code=499)
            return EventStream(told(_chunks(body, tools, started)), started)
        answer = await while_connected(request, _answer(body, tools, begin))
        return answer or Response(status_code=499)


async def _answer(
    body: ChatRequest, tools: ToolPlan, begin: Callable[[], Awaitable[Bundle]]
) -> Response:
    started = await begin()
    answers = await bundle.collect(started)
    completion = {
        "id": started.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": started.route.model,
        "choices": [
            _whole(index, answer, tools.reader(), bool(body.logprobs))
            for index, answer in enumerate(answers)
        ],
        "usage": usage(started),
        "system_fingerprint": fingerprint(started),
        "service_tier": started.first.service_tier,
    }
    return json_answer(completion, started)


def _whole(
    index: int, answer: Delta, reader: ToolCallReader | None, has_logprobs: bool
) -> dict[str, Any]:
    """One choice of an answer that is not streamed."""
    pieces = _pieces(answer, reader)
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    calls = [_call(piece) for piece in pieces if isinstance(piece, ToolCall)]
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": calls}
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(answer.logprobs) if has_logprobs else None,
        "finish_reason": _finish_reason(answer, reader),
    }


async def _chunks(body: ChatRequest, tools: ToolPlan, started: Bundle) -> AsyncIterator[bytes]:
    base: dict[str, Any] = {
        "id": started.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": started.route.model,
        "system_fingerprint": fingerprint(started),
        "service_tier": started.first.service_tier,
    }
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    writers = [
        _Writer(index, {**base, **extra}, tools.reader(), bool(body.logprobs))
        for index in range(len(started))
    ]
    for writer in writers:
        yield writer.chunk({"role": "assistant", "content": "", "refusal": None})
    async for index, delta in started.deltas():
        for chunk in writers[index].chunks(delta):
            yield chunk
    if body.wants_usage:
        yield event({**base, "choices": [], "usage": usage(started)})


class _Writer:
    """The chunks of one choice.

    A token's chunk is its text between two halves that are encoded once.
    """

    def __init__(
        self,
        index: int,
        base: dict[str, Any],
        reader: ToolCallReader | None,
        has_logprobs: bool,
    ) -> None:
        self._index = index
        self._base = base
        self._reader = reader
        self._has_logprobs = has_logprobs
        self._calls = 0
        before, after = self.chunk({"content": "\0"}).split(b'"\\u0000"')
        self._halves = before, after

    def chunk(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return event({**self._base, "choices": [choice]})

    def chunks(self, delta: Delta) -> list[bytes]:
        """What one message of the engine becomes."""
        pieces = _pieces(delta, self._reader)
        chunks: list[bytes] = []
        if self._has_logprobs and delta.logprobs:
            # Text that is held back for a call comes after its tokens.
            text = "".join(piece for piece in pieces if isinstance(piece, str))
            chunks.append(self.chunk({"content": text}, None, chat_logprobs(delta.logprobs)))
            pieces = [piece for piece in pieces if isinstance(piece, ToolCall)]
        for piece in pieces:
            chunks += [self._text(piece)] if isinstance(piece, str) else self._called(piece)
        if delta.finish_reason:
            chunks.append(self.chunk({}, _finish_reason(delta, self._reader)))
        return chunks

    def _text(self, text: str) -> bytes:
        before, after = self._halves
        return before + orjson.dumps(text) + after

    def _called(self, call: ToolCall) -> list[bytes]:
        """A call's name, then its arguments: clients put the pieces together by the index."""
        index, self._calls = self._calls, self._calls + 1
        head = {"index": index, **_call(call)}
        head["function"] = {"name": call.name, "arguments": ""}
        rest = {"index": index, "function": {"arguments": call.arguments}}
        return [self.chunk({"tool_calls": [head]}), self.chunk({"tool_calls": [rest]})]


def _pieces(delta: Delta, reader: ToolCallReader | None) -> list[str | ToolCall]:
    if reader is None:
        return [delta.text] if delta.text else []
    pieces = reader.push(delta.text)
    return pieces + reader.flush() if delta.finish_reason else pieces


def _finish_reason(delta: Delta, reader: ToolCallReader | None) -> str:
    if reader is not None and reader.count and delta.finish_reason == "stop":
        return "tool_calls"
    return delta.finish_reason


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _asked(
    caller: Caller, body: ChatRequest, prompt: PromptUse, tools: ToolPlan, deadline: Deadline
) -> generation.Request:
    sampling = body.sampling()
    stops = [*([body.stop] if isinstance(body.stop, str) else body.stop or ()), *tools.stops]
    sampling |= {
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "stop": stops or None,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        "response_format": answer_format(tools, engine_format(body.response_format)),
    }
    return generation.Request(
        id=names.new_id("chatcmpl"),
        tenant=caller.tenant,
        operation="chat",
        model=body.model,
        make_prompt=Conversation([*prompt.messages, *rendered(body.messages or ())], tools),
        sampling=sampling,
        principal=caller.principal,
        service_tier=body.service_tier,
        is_streamed=bool(body.stream),
        deadline=deadline,
        user=body.safety_identifier or body.user or "",
    )


def _check(body: ChatRequest) -> None:
    if body.messages is None and body.prompt is None:
        raise missing("messages")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidArgument(
            "give 'max_tokens' or 'max_completion_tokens', not both", field="max_tokens"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidArgument("top_logprobs needs logprobs: true", field="top_logprobs")
