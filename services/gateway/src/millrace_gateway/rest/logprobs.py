"""Log probabilities in the two shapes that the OpenAI API has for them.

Chat: https://platform.openai.com/docs/api-reference/chat/object; completions:
https://platform.openai.com/docs/api-reference/completions/object
"""

import codecs
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from millrace_gateway.triton import Alternative, TokenLogprob

# What stands for minus infinity, which JSON cannot say, as the OpenAI API has it.
_IMPOSSIBLE = -9999.0


class ChatAlternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(ChatAlternative):
    top_logprobs: list[ChatAlternative]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """Lists with one entry a token. ``text_offset`` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The chat shape. Tokens that spell nothing are left out: the rest is the content."""
    return {"content": [_chat_entry(token) for token in tokens if token["bytes"]], "refusal": None}


def _chat_entry(token: TokenLogprob) -> dict[str, Any]:
    return {**_alternative(token), "top_logprobs": [_alternative(one) for one in token["top"]]}


def _alternative(one: Alternative) -> dict[str, Any]:
    return {"token": one["token"], "logprob": _number(one["logprob"]), "bytes": one["bytes"]}


class LegacyLogprobs:
    """The completions shape, piece by piece: offsets go on from one piece to the next."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def add(self, tokens: Sequence[TokenLogprob], *, is_prompt: bool = False) -> dict[str, Any]:
        """The shape for the tokens that come next.

        Args:
            is_prompt: they are of the echoed prompt, in whose text special tokens are written
                out, and whose first token has no probability.
        """
        offsets = [self._pass(token, is_prompt) for token in tokens]
        logprobs: list[float | None] = [_number(token["logprob"]) for token in tokens]
        top: list[dict[str, float] | None] = [_by_name(token) for token in tokens]
        if is_prompt and tokens:
            logprobs[0] = top[0] = None
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": logprobs,
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def _pass(self, token: TokenLogprob, is_prompt: bool) -> int:
        offset = self._characters
        spelled = prompt_bytes(token) if is_prompt else bytes(token["bytes"])
        self._characters += len(self._decoder.decode(spelled))
        return offset


def prompt_text(tokens: Sequence[TokenLogprob]) -> str:
    """The text of a prompt that was given as token ids, special tokens written out."""
    return b"".join(map(prompt_bytes, tokens)).decode(errors="replace")


def prompt_bytes(token: TokenLogprob) -> bytes:
    return bytes(token["bytes"]) or token["token"].encode()


def extended(shape: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two pieces of the completions shape as one."""
    return {key: [*shape[key], *more[key]] for key in shape}


def _by_name(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the one that stands there."""
    chosen = {_name(token): _number(token["logprob"])}
    return {_name(one): _number(one["logprob"]) for one in token["top"]} | chosen


def _name(token: Alternative) -> str:
    """A token's text; its bytes in hexadecimal when they are no whole characters."""
    spelled = bytes(token["bytes"])
    try:
        return spelled.decode() if spelled else token["token"]
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _number(logprob: float | None) -> float:
    return _IMPOSSIBLE if logprob is None else logprob
