"""``/v1/embeddings``: vectors of texts, in unit length.

All inputs of a request are asked of the engine at once, one after the other in one prompt, and
come back in any order (``millrace_registry/engines/embedding.py``).
Reference: https://platform.openai.com/docs/api-reference/embeddings/create
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import Request, Response
from pydantic import BaseModel, Discriminator, Field, Tag

from millrace_gateway import bundle, generation
from millrace_gateway.deadline import Deadline
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.deadlines import PARAMETER, deadline_of
from millrace_gateway.rest.generations import headers, while_connected
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_runtime import names
from millrace_runtime.errors import InvalidArgument, Unavailable

ROUTER = router("embeddings")

_MOST_INPUTS = 2048  # as the OpenAI API has it

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Several = Field(min_length=1, max_length=_MOST_INPUTS, fail_fast=True)


def _form(value: Any) -> str:
    """Which form of ``input`` is meant, by its first element."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "tokens" if isinstance(first, int) else "lists" if isinstance(first, list) else "texts"


Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Several, Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Several, Tag("lists")],
    Discriminator(_form),
]


class EmbeddingRequest(RequestBody):
    """``input`` is a text, or its token ids, or a list of either."""

    model: Annotated[str, Field(min_length=1, max_length=300)]
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [one for one in self.input if not isinstance(one, int)]


class Embedding(BaseModel):
    """``embedding`` is a list of numbers, or their little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@ROUTER.post(
    "/v1/embeddings",
    response_model=None,
    responses={200: {"model": Embeddings}},
    openapi_extra=PARAMETER,
)
async def create_embeddings(request: Request, body: EmbeddingRequest, caller: CallerOf) -> Response:
    """Vectors of texts: the mean of the model's last hidden state, in unit length."""
    with _refused_by_engine(body.model):
        answer = await while_connected(request, _answer(caller, body, deadline_of(request)))
        return answer or Response(status_code=499)


async def _answer(caller: Caller, body: EmbeddingRequest, deadline: Deadline) -> Response:
    inputs = body.inputs
    asked = generation.Request(
        id=names.new_id("embd"),
        tenant=caller.tenant,
        operation="embeddings",
        model=body.model,
        make_prompt=lambda _target, prompt=_joined(inputs): prompt,
        sampling={
            "embed": {"sizes": [len(one) for one in inputs], "dimensions": body.dimensions},
            "max_tokens": 0,
        },
        principal=caller.principal,
        deadline=deadline,
    )
    started = await bundle.start(caller.gateway.generator, [asked])
    found: dict[int, bytes] = {}
    async for _, delta in started.deltas():
        found.update(delta.embeddings)
    if found.keys() != set(range(len(inputs))):
        raise Unavailable(
            f"the model answered with {len(found)} of {len(inputs)} vectors",
            reason="ENGINE_FAILED",
        )
    tokens = started.prompt_tokens
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(body, found[index])}
            for index in range(len(inputs))
        ],
        "model": started.route.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    document = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(document, headers=headers(started), media_type="application/json")


def _joined(inputs: Sequence[str | list[int]]) -> str | list[int]:
    """One after the other; all are of one kind."""
    if isinstance(inputs[0], str):
        return "".join(one for one in inputs if isinstance(one, str))
    return list(chain.from_iterable(one for one in inputs if isinstance(one, list)))


def _written(body: EmbeddingRequest, vector: bytes) -> Any:
    """A vector, float32 as bytes, as it is to stand in JSON."""
    if body.encoding_format == "base64":
        return b64encode(vector).decode()
    return np.frombuffer(vector, np.float32)


@contextmanager
def _refused_by_engine(model: str) -> Iterator[None]:
    """Say in this API's words what the engine refuses: a model, or else an input."""
    try:
        yield
    except InvalidArgument as error:
        if not error.field and "embed" in str(error):
            raise InvalidArgument(
                f"the model {model!r} has no embedding output: {error}",
                reason="UNSUPPORTED_MODEL",
                field="model",
            ) from error
        if error.field in ("", "messages"):
            error.field = "input"
        raise
