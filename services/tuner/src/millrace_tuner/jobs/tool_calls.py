"""Calls of functions in what a policy wrote, as graders see them.

Models that were trained in the manner of Hermes and Qwen write a call as
``<tool_call>{"name": …, "arguments": {…}}</tool_call>``
(https://github.com/NousResearch/Hermes-Function-Calling); the gateway reads them so.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from millrace_tuner.graders.grades import Sample

_CALL = re.compile(r"\s*<tool_call>(.*?)(?:</tool_call>|$)\s*", re.DOTALL)


def sample(text: str, functions: Collection[str]) -> Sample:
    """An answer whose calls of ``functions`` are told from its text."""
    calls: list[dict[str, Any]] = []

    def taken(match: re.Match[str]) -> str:
        call = _call(match[1], functions, len(calls))
        if call is None:
            return match[0]
        calls.append(call)
        return ""

    said = _CALL.sub(taken, text) if functions else text
    return Sample(said, calls)


def _call(document: str, functions: Collection[str], number: int) -> dict[str, Any] | None:
    try:
        found = json.loads(document)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("name") not in functions:
        return None
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": found["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{number}", "type": "function", "function": function}
