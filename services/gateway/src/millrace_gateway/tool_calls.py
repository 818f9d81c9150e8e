"""Calls of functions, found in what a model writes.

Models that were trained in the manner of Hermes and Qwen write a call as
``<tool_call>{"name": …, "arguments": {…}}</tool_call>``
(https://github.com/NousResearch/Hermes-Function-Calling).
"""

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class ToolCallReader:
    """Tells calls from other text, as the text comes.

    What may be the beginning of a call is held back until that is decided. White space around
    calls is dropped. What looks like a call, and is none of these functions, stays text.
    """

    def __init__(self, names: Collection[str], *, is_forced: bool = False) -> None:
        """``is_forced``: the prompt ends with an opened call, so the answer begins within it."""
        self.count = 0
        self._names = names
        self._is_inside = is_forced
        self._opening = "" if is_forced else OPEN  # what the model itself wrote of the mark
        self._held = ""

    def push(self, text: str) -> list[str | ToolCall]:
        """Add text; return what became certain."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            before, mark, after = self._held.partition(CLOSE if self._is_inside else OPEN)
            if not mark:
                break
            self._held = after
            found += self._closed(before, CLOSE) if self._is_inside else _said(before.rstrip())
            self._is_inside = not self._is_inside
        return found if self._is_inside else found + self._certain()

    def flush(self) -> list[str | ToolCall]:
        """What was held back when the answer ends; a call need not be closed then."""
        rest, self._held = self._held, ""
        if self._is_inside:
            return self._closed(rest, "")
        return _said(rest.rstrip() if self.count else rest)

    def _certain(self) -> list[str | ToolCall]:
        text = self._held
        sizes = range(min(len(OPEN) - 1, len(text)), 0, -1)
        undecided = next((size for size in sizes if text.endswith(OPEN[:size])), 0)
        certain = text[: len(text) - undecided].rstrip()
        self._held = text[len(certain) :]
        return _said(certain)

    def _closed(self, document: str, mark: str) -> list[str | ToolCall]:
        opening, self._opening = self._opening, OPEN
        call = _parse(document, self._names)
        if call is None:
            return _said(opening + document + mark)
        self.count += 1
        return [call]


def _said(text: str) -> list[str | ToolCall]:
    return [text] if text else []


def _parse(document: str, names: Collection[str]) -> ToolCall | None:
    try:
        call = json.loads(document, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or call.get("name") not in names:
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{secrets.token_hex(12)}", call["name"], text)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
