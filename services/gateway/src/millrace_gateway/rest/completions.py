"""``/v1/completions``: text that goes on.

Several prompts, each with ``n`` answers, become one choice each: the choice of answer ``i`` to
prompt ``p`` has the index ``p * n + i``.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Field

from millrace_gateway import bundle, generation
from millrace_gateway.bundle import Bundle
from millrace_gateway.deadline import Deadline
from millrace_gateway.generation import PromptMaker
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.deadlines import PARAMETER, deadline_of
from millrace_gateway.rest.formats import ResponseFormat, engine_format
from millrace_gateway.rest.generations import (
    AlternativeCount,
    EventStream,
    SamplingBody,
    Usage,
    calling,
    event,
    fingerprint,
    json_answer,
    repeated,
    told,
    usage,
    while_connected,
)
from millrace_gateway.rest.logprobs import (
    CompletionLogprobs,
    LegacyLogprobs,
    extended,
    prompt_text,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.triton import Delta, joined
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument

ROUTER = router("completions")

_DEFAULT_MAX_TOKENS = 16  # as the OpenAI API has it
_MAXIMUM_CHOICES = 128

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Prompt = str | list[int]


class CompletionRequest(SamplingBody):
    """``prompt`` is a text, or its token ids, or a list of either."""

    prompt: Text | Annotated[list[Text] | list[TokenId] | list[Tokens], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    logprobs: AlternativeCount | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    # Not supported: accepted when it asks for nothing, and else refused by name.
    suffix: Literal[""] | None = None


class Choice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
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
    openapi_extra=PARAMETER,
)
async def create_completion(
    request: Request, body: CompletionRequest, caller: CallerOf
) -> Response:
    """Continue a text, at once or as a stream of server-sent events."""
    prompts = _prompts(body)
    asked = _asked(caller, body, prompts, deadline_of(request, bool(body.stream)))
    begin = partial(bundle.start, caller.gateway.generator, asked, repeats=body.n or 1)
    with calling({"messages": "prompt"}):
        if body.stream:
            started = await while_connected(request, begin())
            if started is None:
                return Response(status_code=499)
            return EventStream(told(_chunks(body, prompts, started)), started)
        answer = await while_connected(request, _answer(body, prompts, begin))
        return answer or Response(status_code=499)


async def _answer(
    body: CompletionRequest, prompts: Sequence[Prompt], begin: Callable[[], Awaitable[Bundle]]
) -> Response:
    started = await begin()
    answers = await bundle.collect(started)
    choices = [
        writer.choice(answer, answer.finish_reason)
        for writer, answer in zip(_writers(body, prompts), answers, strict=True)
    ]
    return json_answer({**_base(started), "choices": choices, "usage": usage(started)}, started)


async def _chunks(
    body: CompletionRequest, prompts: Sequence[Prompt], started: Bundle
) -> AsyncIterator[bytes]:
    base = _base(started)
    extra: dict[str, Any] = {"usage": None} if body.wants_usage else {}
    writers = _writers(body, prompts)
    async for index, delta in started.deltas():
        ready = writers[index].take(delta)
        if ready is not None and (ready.text or ready.logprobs or ready.finish_reason):
            choice = writers[index].choice(ready, ready.finish_reason or None)
            yield event({**base, **extra, "choices": [choice]})
    if body.wants_usage:
        yield event({**base, "choices": [], "usage": usage(started)})


def _base(started: Bundle) -> dict[str, Any]:
    return {
        "id": started.id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": started.route.model,
        "system_fingerprint": fingerprint(started),
    }


@dataclass
class _Writer:
    """One choice, piece by piece.

    Attributes:
        echoed: the prompt, when it is to be said first.
        needs_all: what is said first is known only at the end, so that nothing can be said
            before.
    """

    index: int
    logprobs: LegacyLogprobs | None
    echoed: Prompt | None
    needs_all: bool
    _held: list[Delta] = field(default_factory=list)

    def take(self, delta: Delta) -> Delta | None:
        """What can be said now; None when all must wait."""
        if not self.needs_all:
            return delta
        self._held.append(delta)
        return joined(self._held) if delta.finish_reason else None

    def choice(self, delta: Delta, finish_reason: str | None) -> dict[str, Any]:
        echoed, self.echoed = self.echoed, None
        text = delta.text
        if echoed is not None:
            text = (
                echoed if isinstance(echoed, str) else prompt_text(delta.prompt_logprobs)
            ) + text
        return {
            "index": self.index,
            "text": text,
            "logprobs": self._logprobs(delta, echoed is not None),
            "finish_reason": finish_reason,
        }

    def _logprobs(self, delta: Delta, is_echoed: bool) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        before = self.logprobs.add(delta.prompt_logprobs if is_echoed else (), is_prompt=True)
        return extended(before, self.logprobs.add(delta.logprobs))


def _writers(body: CompletionRequest, prompts: Sequence[Prompt]) -> list[_Writer]:
    n = body.n or 1
    return [
        _Writer(
            index=index,
            logprobs=None if body.logprobs is None else LegacyLogprobs(),
            echoed=prompts[index // n] if body.echo else None,
            needs_all=_needs_prompt_logprobs(body, prompts[index // n]),
        )
        for index in range(len(prompts) * n)
    ]


def _asked(
    caller: Caller, body: CompletionRequest, prompts: Sequence[Prompt], deadline: Deadline
) -> list[generation.Request]:
    _check(body, prompts)
    sampling = {
        **body.sampling(),
        "max_tokens": _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        "logprobs": body.logprobs,
        "response_format": engine_format(body.response_format),
    }
    identifier = names.new_id("cmpl")
    return [
        request
        for number, prompt in enumerate(prompts)
        for request in repeated(
            generation.Request(
                id=f"{identifier}-prompt-{number}" if number else identifier,
                tenant=caller.tenant,
                operation="text_completion",
                model=body.model,
                make_prompt=_as_it_is(prompt),
                sampling={
                    **sampling,
                    "prompt_logprobs": _needs_prompt_logprobs(body, prompt) or None,
                },
                principal=caller.principal,
                service_tier=body.service_tier,
                is_streamed=bool(body.stream),
                deadline=deadline,
                user=body.user or "",
            ),
            body.n or 1,
        )
    ]


def _as_it_is(prompt: Prompt) -> PromptMaker:
    return lambda _target: prompt


def _needs_prompt_logprobs(body: CompletionRequest, prompt: Prompt) -> bool:
    """The engine tells a prompt's tokens, and answers with none of its own, only with these."""
    if not body.echo:
        return False
    return body.logprobs is not None or body.max_tokens == 0 or not isinstance(prompt, str)


def _check(body: CompletionRequest, prompts: Sequence[Prompt]) -> None:
    n = body.n or 1
    if len(prompts) * n > _MAXIMUM_CHOICES:
        raise InvalidArgument(
            f"{len(prompts)} prompts with {n} answers each are more than {_MAXIMUM_CHOICES} "
            "choices; send them in several requests",
            field="prompt",
        )
    if body.best_of is not None and body.best_of != n:
        raise InvalidArgument(
            "choosing the best of more answers than are returned is not supported",
            reason="UNSUPPORTED_VALUE",
            field="best_of",
        )
    if body.max_tokens == 0 and not body.echo:
        raise InvalidArgument(
            "max_tokens may be 0 only with echo, when the prompt itself is asked about",
            field="max_tokens",
        )


def _prompts(body: CompletionRequest) -> list[Prompt]:
    if isinstance(body.prompt, str):
        return [body.prompt]
    if isinstance(body.prompt[0], int):
        return [[token for token in body.prompt if isinstance(token, int)]]
    return [prompt for prompt in body.prompt if not isinstance(prompt, int)]
