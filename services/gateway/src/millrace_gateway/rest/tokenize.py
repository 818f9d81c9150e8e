"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``: as vLLM has them, also under ``/v1``.

Reference: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api.
lm_eval's remote tokenizer, for one, names no model; it means the only one that is served.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import BaseModel, Field

from millrace_gateway import route
from millrace_gateway.rest.caller import Caller, CallerOf
from millrace_gateway.rest.conversation import Conversation, Messages, rendered
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody
from millrace_gateway.rest.tools import Tools, plan
from millrace_gateway.route import Route, Target
from millrace_gateway.tokenizer import ModelTokenizer
from millrace_runtime.errors import InvalidArgument

ROUTER = router("tokenize")

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

ModelName = Annotated[str, Field(min_length=1, max_length=300)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class TokenizeRequest(RequestBody):
    """A ``prompt`` as it is, or ``messages`` in the model's chat template."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestBody):
    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


class Detokenized(BaseModel):
    prompt: str


@ROUTER.post("/tokenize", response_model=Tokenized)
@ROUTER.post("/v1/tokenize", response_model=Tokenized, include_in_schema=False)
async def tokenize(body: TokenizeRequest, caller: CallerOf, response: Response) -> Tokenized:
    """The tokens of a prompt, exactly as the model would read it."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidArgument("give either 'prompt' or 'messages'", field="prompt")
    found, target = _version(caller, body.model, response)
    text, has_special = _text(body, target)
    if body.add_special_tokens is not None:
        has_special = body.add_special_tokens
    tokenizer = await caller.gateway.tokenizers.of(found, target)
    ids, names = await tokenizer.encode(text, add_special_tokens=has_special)
    return Tokenized(
        count=len(ids),
        max_model_len=target.context_length,
        tokens=ids,
        token_strs=names if body.return_token_strs else None,
    )


@ROUTER.post("/detokenize", response_model=Detokenized)
@ROUTER.post("/v1/detokenize", response_model=Detokenized, include_in_schema=False)
async def detokenize(body: DetokenizeRequest, caller: CallerOf, response: Response) -> Detokenized:
    """The text of tokens."""
    found, target = _version(caller, body.model, response)
    tokenizer = await caller.gateway.tokenizers.of(found, target)
    for place, token in enumerate(body.tokens):
        if token >= tokenizer.vocabulary_size:
            raise InvalidArgument(
                f"the model has {tokenizer.vocabulary_size} tokens; there is no {token}",
                field=f"tokens[{place}]",
            )
    return Detokenized(prompt=await tokenizer.decode(body.tokens))


@ROUTER.get("/tokenizer_info", response_model=dict[str, Any])
@ROUTER.get("/v1/tokenizer_info", response_model=dict[str, Any], include_in_schema=False)
async def tokenizer_info(
    caller: CallerOf,
    response: Response,
    model: Annotated[str | None, Query(min_length=1, max_length=300)] = None,
) -> Mapping[str, Any]:
    """The tokenizer's own configuration, and the chat template that the version is asked with."""
    found, target = _version(caller, model, response)
    return _info(await caller.gateway.tokenizers.of(found, target), target)


def _info(tokenizer: ModelTokenizer, target: Target) -> Mapping[str, Any]:
    configuration = tokenizer.configuration
    return {
        **configuration,
        **{name: _token(configuration.get(name)) for name in _SPECIAL},
        "chat_template": target.chat_template or None,
        "max_model_len": target.context_length,
        "vocab_size": tokenizer.vocabulary_size,
    }


def _token(value: Any) -> Any:
    """A special token, which transformers writes as a string or as an object."""
    return value.get("content") if isinstance(value, dict) else value


def _text(body: TokenizeRequest, target: Target) -> tuple[str, bool]:
    """What is tokenized, and whether special tokens are added unless something else is said.

    Templates write special tokens out themselves.
    """
    if body.messages is None:
        return body.prompt or "", True
    conversation = Conversation(
        rendered(body.messages), plan(body.tools, None, None), body.add_generation_prompt
    )
    return conversation(target), False


def _version(caller: Caller, model: str | None, response: Response) -> tuple[Route, Target]:
    """The version that is meant: that with most traffic, where none is named.

    Raises:
        InvalidArgument: no model is named, and not exactly one is served.
        MillraceError: it is not served.
    """
    routes = caller.gateway.generator.routes
    if model is None:
        served = [known.model for known in routes.of_tenant(caller.tenant)]
        if len(served) != 1:
            names = ", ".join(served) or "none yet"
            raise InvalidArgument(f"say which 'model'; served: {names}", field="model")
        model = served[0]
    found, pinned = routes.find(caller.tenant, model)
    target = max(route.candidates(found, pinned), key=lambda one: (one.share, one.version))
    response.headers["x-millrace-version"] = f"{found.model}@{target.version}"
    return found, target
