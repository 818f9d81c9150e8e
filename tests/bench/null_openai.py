"""An OpenAI server that generates nothing: it answers each chat at once with ready-made bytes.

python -m tests.bench.null_openai PORT
"""

import json
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bench.null_engine import TOKENS

_HEAD = {"id": "chatcmpl-1", "created": 1, "model": "bench"}
_USAGE = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}


def _whole() -> bytes:
    message = {"role": "assistant", "content": " word" * TOKENS}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(answer).encode()


def _stream() -> bytes:
    head = {**_HEAD, "object": "chat.completion.chunk"}
    chunks: list[dict[str, object]] = [
        {**head, "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]}
        for _ in range(TOKENS)
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({**head, "choices": [], "usage": _USAGE})
    events = [f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n" for chunk in chunks]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


WHOLE, STREAM = _whole(), _stream()


async def chat(request: Request) -> Response:
    if (await request.json()).get("stream"):
        return Response(STREAM, media_type="text/event-stream")
    return Response(WHOLE, media_type="application/json")


if __name__ == "__main__":
    routes = [Route("/v1/chat/completions", chat, methods=["POST"])]
    uvicorn.run(
        Starlette(routes=routes), host="127.0.0.1", port=int(sys.argv[1]), log_level="error"
    )
