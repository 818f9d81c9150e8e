"""What chat and text completions share: sampling fields, usage, and streams as SSE.

References: https://platform.openai.com/docs/api-reference/chat and
https://platform.openai.com/docs/api-reference/completions
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from millrace_gateway.bundle import Bundle
from millrace_gateway.generation import Request as GenerationRequest
from millrace_gateway.rest import errors
from millrace_gateway.rest.shapes import Number, RequestBody
from millrace_runtime.errors import InvalidArgument, MillraceError

_Answer = TypeVar("_Answer")
_DONE = b"data: [DONE]\n\n"
_FINGERPRINT_CHARACTERS = 16
_MAXIMUM_N = 16
_MAXIMUM_BIASES = 1024

Penalty = Annotated[Number, Field(ge=-2, le=2)]
TokenLimit = Annotated[int, Field(ge=1, le=2**31 - 1)]
StopText = Annotated[str, Field(min_length=1)]
AlternativeCount = Annotated[int, Field(ge=0, le=20)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]


class StreamOptions(RequestBody):
    include_usage: bool = False
    # Padding against traffic analysis: accepted, and not done.
    include_obfuscation: bool = False


class SamplingBody(RequestBody):
    """The fields that steer generation, in both kinds of completion."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    max_tokens: TokenLimit | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=_MAXIMUM_N)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=_MAXIMUM_BIASES)] | None = None

    def sampling(self) -> dict[str, object]:
        """The engine's sampling parameters (``engines/openvino_genai.py``)."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias or None,
        }

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def missing(field: str) -> InvalidArgument:
    """For a field that may be left out in some requests only."""
    return InvalidArgument(
        f"Missing required parameter: '{field}'.",
        reason="MISSING_REQUIRED_PARAMETER",
        field=field,
    )


@contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors call fields by the names that an API has for them."""
    try:
        yield
    except MillraceError as error:
        error.field = names.get(error.field, error.field)
        raise


def repeated(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """``n`` requests that differ in their ids and, when one is given, in their seeds."""
    seed = request.sampling.get("seed")
    return [
        replace(
            request,
            id=f"{request.id}-{index}",
            sampling=(
                {**request.sampling, "seed": seed + index}
                if isinstance(seed, int)
                else request.sampling
            ),
        )
        if index
        else request
        for index in range(n)
    ]


def usage(bundle: Bundle) -> dict[str, int]:
    prompt_tokens, completion_tokens = bundle.prompt_tokens, bundle.completion_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def headers(bundle: Bundle) -> dict[str, str]:
    return {"x-millrace-version": f"{bundle.route.model}@{bundle.target.version}"}


def fingerprint(bundle: Bundle) -> str:
    """Same fingerprint, same seed, same answer: it is the artifact's digest.

    ``/v1/lineage/{fingerprint}`` says what the artifact was made from.
    """
    digest = bundle.target.artifact_digest.removeprefix("sha256:")
    return f"fp_{digest[:_FINGERPRINT_CHARACTERS]}"


def json_answer(content: Mapping[str, Any], bundle: Bundle) -> Response:
    return Response(orjson.dumps(content), headers=headers(bundle), media_type="application/json")


class EventStream(StreamingResponse):
    """Server-sent events; what fails on the way is said in one, as the OpenAI API does."""

    def __init__(self, chunks: AsyncIterator[bytes], bundle: Bundle) -> None:
        super().__init__(
            chunks,
            headers={**headers(bundle), "cache-control": "no-cache"},
            media_type="text/event-stream",
        )
        self._bundle = bundle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # A client may be gone before the first chunk was asked for; then nobody else would.
            await self._bundle.close()


def event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def while_connected(request: Request, work: Awaitable[_Answer]) -> _Answer | None:
    """The result of ``work``; when the client goes away it is cancelled, and there is none."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        watching.cancel()
        if working.cancel():
            # It must have let the engine go before the request counts as over.
            await asyncio.gather(working, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def told(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``chunks``, ended as the OpenAI API ends them: with ``[DONE]``, or with an error."""
    try:
        async for chunk in chunks:
            yield chunk
    except MillraceError as error:
        yield event(errors.document(error))
    else:
        yield _DONE
