"""A response of ``/v1/responses`` as it grows, and the events that tell of it.

Reference: https://platform.openai.com/docs/api-reference/responses-streaming
"""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from millrace_gateway.bundle import Bundle
from millrace_gateway.rest import errors
from millrace_gateway.rest.generations import fingerprint
from millrace_gateway.rest.logprobs import chat_logprobs
from millrace_gateway.tool_calls import ToolCall, ToolCallReader
from millrace_gateway.triton import Delta
from millrace_runtime import names
from millrace_runtime.errors import MillraceError

# The few codes that the OpenAI API has for a response that failed.
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class GrowingResponse:
    """Takes the engine's deltas; what has become of them is in ``document``."""

    def __init__(
        self, bundle: Bundle, said: Mapping[str, Any], reader: ToolCallReader | None
    ) -> None:
        """``said`` is what the response repeats of its request."""
        self._bundle = bundle
        self._reader = reader
        self._number = 0
        self._message: dict[str, Any] | None = None  # the one that is being written
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._unsaid_logprobs: list[dict[str, Any]] = []
        self._output: list[dict[str, Any]] = []
        self.document: dict[str, Any] = {
            **said,
            "id": bundle.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": bundle.route.model,
            "output": [],
            "usage": None,
            "system_fingerprint": fingerprint(bundle),
            "service_tier": bundle.first.service_tier,
        }

    def begin(self) -> list[bytes]:
        return [
            self._event(f"response.{word}", response=self.document)
            for word in ("created", "in_progress")
        ]

    def add(self, delta: Delta) -> list[bytes]:
        """The events for one message of the engine."""
        self._unsaid_logprobs += chat_logprobs(delta.logprobs)["content"]
        events: list[bytes] = []
        for piece in self._read(delta):
            events += self._said(piece) if isinstance(piece, str) else self._called(piece)
        return events + self._end(delta.finish_reason) if delta.finish_reason else events

    def fail(self, error: MillraceError) -> list[bytes]:
        code = _CODES.get(errors.status_of(error), "server_error")
        said = {"code": code, "message": str(error)}
        self.document |= {"status": "failed", "error": said, "output": self._output}
        return [self._event("response.failed", response=self.document)]

    def finish(self) -> list[bytes]:
        """The last event, when the engine has said all."""
        prompt_tokens, tokens = self._bundle.prompt_tokens, self._bundle.completion_tokens
        self.document["usage"] = {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + tokens,
        }
        return [self._event(f"response.{self.document['status']}", response=self.document)]

    def _read(self, delta: Delta) -> list[str | ToolCall]:
        if self._reader is None:
            return [delta.text] if delta.text else []
        pieces = self._reader.push(delta.text)
        return pieces + self._reader.flush() if delta.finish_reason else pieces

    def _said(self, text: str) -> list[bytes]:
        events = [] if self._message else self._begin_message()
        assert self._message is not None
        self._pieces.append(text)
        fresh, self._unsaid_logprobs = self._unsaid_logprobs, []
        self._logprobs += fresh
        return [
            *events,
            self._event("response.output_text.delta", **self._place(), delta=text, logprobs=fresh),
        ]

    def _begin_message(self) -> list[bytes]:
        self._message = {
            "id": names.new_id("msg"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._pieces, self._logprobs = [], []
        return [
            self._item_event("added", self._message),
            self._event("response.content_part.added", **self._place(), part=_part("", [])),
        ]

    def _end_message(self, status: str) -> list[bytes]:
        message, text = self._message, "".join(self._pieces)
        if message is None:
            return []
        part, logprobs = _part(text, self._logprobs), self._logprobs
        events = [
            self._event("response.output_text.done", **self._place(), text=text, logprobs=logprobs),
            self._event("response.content_part.done", **self._place(), part=part),
        ]
        message |= {"content": [part], "status": status}
        events.append(self._item_event("done", message))
        self._output.append(message)
        self._message = None
        return events

    def _called(self, call: ToolCall) -> list[bytes]:
        events = self._end_message("completed")
        item: dict[str, Any] = {
            "id": names.new_id("fc"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        place = {"item_id": item["id"], "output_index": len(self._output)}
        name = "response.function_call_arguments"
        events += [
            self._item_event("added", item),
            self._event(f"{name}.delta", **place, delta=call.arguments),
            self._event(f"{name}.done", **place, name=call.name, arguments=call.arguments),
        ]
        item |= {"status": "completed", "arguments": call.arguments}
        events.append(self._item_event("done", item))
        self._output.append(item)
        return events

    def _end(self, finish_reason: str) -> list[bytes]:
        is_cut = finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        events = [] if self._message or self._output else self._begin_message()
        events += self._end_message(status)
        reason = {"reason": "max_output_tokens"} if is_cut else None
        self.document |= {
            "status": status,
            "incomplete_details": reason,
            "output": self._output,
        }
        return events

    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {
            "item_id": self._message["id"],
            "output_index": len(self._output),
            "content_index": 0,
        }

    def _item_event(self, word: str, item: dict[str, Any]) -> bytes:
        return self._event(
            f"response.output_item.{word}", output_index=len(self._output), item=item
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        content = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + content + b"\n\n"


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
