"""``/v1/responses`` without a memory: each request holds its whole conversation.

Reference: https://platform.openai.com/docs/api-reference/responses
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from millrace_gateway import bundle, generation
from millrace_gateway.bundle import Bundle
from millrace_gateway.deadline import Deadline
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.conversation import Conversation, arguments
from millrace_gateway.rest.deadlines import PARAMETER, deadline_of
from millrace_gateway.rest.formats import (
    FormatName,
    JsonObjectFormat,
    JsonSchema,
    TextFormat,
)
from millrace_gateway.rest.generations import (
    AlternativeCount,
    EventStream,
    TokenLimit,
    calling,
    json_answer,
    missing,
    while_connected,
)
from millrace_gateway.rest.prompt_reference import PromptReference, PromptUse, use
from millrace_gateway.rest.response_events import GrowingResponse
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import Number, RequestBody
from millrace_gateway.rest.tools import (
    FunctionDefinition,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    ToolPlan,
    answer_format,
    plan,
)
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument, MillraceError

ROUTER = router("responses")

_LOGPROBS = "message.output_text.logprobs"
# How this API calls what has another name in chats, and in the engine.
_FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
_STATELESS = "no responses are kept here: send the whole conversation as 'input', without {field!r}"


class InputText(RequestBody):
    """``annotations`` and ``logprobs`` come back with what was answered before, and say nothing."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Texts = str | Annotated[list[InputText], Field(min_length=1)]


class InputMessage(RequestBody):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Texts
    id: str | None = None
    status: str | None = None


class FunctionCall(RequestBody):
    """A call that the model made before."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionCallOutput(RequestBody):
    type: Literal["function_call_output"]
    call_id: str
    output: Texts
    id: str | None = None
    status: str | None = None


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else "message"


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(RequestBody):
    type: Literal["function"]
    name: FormatName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class NamedFunctionTool(NamedFunction):
    type: Literal["function"]


class SchemaFormat(RequestBody):
    type: Literal["json_schema"]
    name: FormatName
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextConfiguration(RequestBody):
    format: (
        Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: Literal["medium"] | None = None


class StreamOptions(RequestBody):
    # Padding against traffic analysis: accepted, and not done.
    include_obfuscation: bool = False


class ResponseRequest(RequestBody):
    model: Annotated[str, Field(min_length=1, max_length=300)]
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Item], Field(min_length=1, max_length=10_000)]
        | None
    ) = None
    prompt: PromptReference | None = None
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextConfiguration | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: AlternativeCount | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # Refused with advice, unless they ask for nothing.
    store: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    # Not supported: accepted when it asks for nothing, and else refused by name.
    truncation: Literal["disabled"] | None = None
    # A hint of the OpenAI API that has no effect on an answer here.
    prompt_cache_key: str | None = None
    # Who asks: an A/B test keeps him on his side.
    safety_identifier: str | None = None


class ResponseObject(BaseModel):
    """``output`` holds messages and function calls."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    system_fingerprint: str
    service_tier: Literal["default", "flex", "priority"]


@ROUTER.post(
    "/v1/responses",
    response_model=None,
    responses={
        200: {
            "model": ResponseObject,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
    openapi_extra=PARAMETER,
)
async def create_response(request: Request, body: ResponseRequest, caller: CallerOf) -> Response:
    """Answer a conversation, at once or as a stream of typed events."""
    _check(body)
    prompt = await use(caller, body.prompt)
    tools, said = _plan(body, prompt), {**_said(body), **prompt.said}
    with calling({**_FIELDS, **tools.fields}):
        asked = _asked(caller, body, prompt, tools, deadline_of(request, bool(body.stream)))
        begin = partial(bundle.start, caller.gateway.generator, [asked])
        if body.stream:
            started = await while_connected(request, begin())
            if started is None:
                return Response(status_code=499)
            return EventStream(_events(said, tools, started), started)
        answer = await while_connected(request, _answer(said, tools, begin))
        return answer or Response(status_code=499)


async def _answer(
    said: Mapping[str, Any], tools: ToolPlan, begin: Callable[[], Awaitable[Bundle]]
) -> Response:
    started = await begin()
    growing = GrowingResponse(started, said, tools.reader())
    async for _, delta in started.deltas():
        growing.add(delta)
    growing.finish()
    return json_answer(growing.document, started)


async def _events(
    said: Mapping[str, Any], tools: ToolPlan, started: Bundle
) -> AsyncIterator[bytes]:
    growing = GrowingResponse(started, said, tools.reader())
    for event in growing.begin():
        yield event
    try:
        async for _, delta in started.deltas():
            for event in growing.add(delta):
                yield event
    except MillraceError as error:
        ending = growing.fail(error)
    else:
        ending = growing.finish()
    for event in ending:
        yield event


def _plan(body: ResponseRequest, prompt: PromptUse) -> ToolPlan:
    tools: Sequence[Tool] = [
        Tool(type="function", function=FunctionDefinition(**tool.model_dump(exclude={"type"})))
        for tool in body.tools or ()
    ]
    if body.tools is None:
        tools = prompt.tools or ()
    choice: ToolChoice | None = None
    if isinstance(body.tool_choice, NamedFunctionTool):
        function = NamedFunction(name=body.tool_choice.name)
        choice = NamedTool(type="function", function=function)
    else:
        choice = body.tool_choice
    strict = {f"tools[{n}].function.strict": f"tools[{n}].strict" for n in range(len(tools))}
    with calling(strict):
        return plan(tools, choice, body.parallel_tool_calls)


def _asked(
    caller: Caller, body: ResponseRequest, prompt: PromptUse, tools: ToolPlan, deadline: Deadline
) -> generation.Request:
    has_logprobs = _LOGPROBS in (body.include or ())
    return generation.Request(
        id=names.new_id("resp"),
        tenant=caller.tenant,
        operation="chat",
        model=body.model,
        make_prompt=Conversation(_messages(body, prompt), tools),
        sampling={
            "max_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "stop": tools.stops or None,
            "logprobs": (body.top_logprobs or 0) if has_logprobs else None,
            "response_format": answer_format(tools, _engine_format(body.text)),
        },
        principal=caller.principal,
        service_tier=body.service_tier,
        is_streamed=bool(body.stream),
        deadline=deadline,
        user=body.safety_identifier or body.user or "",
    )


def _check(body: ResponseRequest) -> None:
    if body.input is None and body.prompt is None:
        raise missing("input")
    for field in ("store", "previous_response_id", "background", "conversation"):
        if getattr(body, field):
            raise InvalidArgument(
                _STATELESS.format(field=field), reason="UNSUPPORTED_VALUE", field=field
            )
    if body.top_logprobs is not None and _LOGPROBS not in (body.include or ()):
        raise InvalidArgument(
            f"top_logprobs needs {_LOGPROBS!r} in 'include'", field="top_logprobs"
        )


def _engine_format(text: TextConfiguration | None) -> Mapping[str, Any] | None:
    wanted = text.format if text else None
    if isinstance(wanted, JsonObjectFormat):
        return {"type": "json_object"}
    if isinstance(wanted, SchemaFormat):
        return {"type": "json_schema", "schema": wanted.schema_}
    return None


def _messages(body: ResponseRequest, prompt: PromptUse) -> list[Mapping[str, Any]]:
    """The conversation as chat templates take it: what is given before it, then the input."""
    given = list(prompt.messages)
    if body.instructions:
        given.insert(0, {"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*given, {"role": "user", "content": body.input}]
    return [*given, *_items(body.input or ())]


def _items(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages; calls belong to the message before them."""
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        if isinstance(item, InputMessage):
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
        elif isinstance(item, FunctionCallOutput):
            content = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            call = _call(item, f"input[{number}].arguments")
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def _call(item: FunctionCall, place: str) -> dict[str, Any]:
    function = {"name": item.name, "arguments": arguments(item.arguments, place)}
    return {"id": item.call_id, "type": "function", "function": function}


def _text(texts: str | Sequence[InputText]) -> str:
    return texts if isinstance(texts, str) else "".join(part.text for part in texts)


def _said(body: ResponseRequest) -> dict[str, Any]:
    """What a response repeats of its request, with what holds where nothing was said."""
    given = body.model_dump(mode="json", by_alias=True, include={"text", "tool_choice", "tools"})
    text = given["text"] or {}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": given["tool_choice"] or "auto",
        "tools": given["tools"] or [],
        "top_logprobs": body.top_logprobs,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
