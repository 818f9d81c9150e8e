"""Messages as clients send them, and the prompt that a version's chat template makes of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace_gateway.rest.shapes import RequestBody
from millrace_gateway.rest.tools import ToolPlan
from millrace_gateway.route import Target
from millrace_runtime import chat_template
from millrace_runtime.errors import InvalidArgument


class TextPart(RequestBody):
    type: Literal["text"]
    text: str


class CalledFunction(RequestBody):
    """``arguments`` is the text of a JSON object."""

    name: str
    arguments: str


class CallMade(RequestBody):
    """A call that the assistant made before."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(RequestBody):
    """A text message; the parts of its content are joined."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[CallMade], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    refusal: None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=10_000)]


@dataclass(frozen=True)
class Conversation:
    """Makes the prompt for a version, with that version's own template.

    Attributes:
        messages: as chat templates take them.
        asks: whether the prompt ends with the beginning of the assistant's answer.
    """

    messages: Sequence[Mapping[str, Any]]
    plan: ToolPlan
    asks: bool = True

    def __call__(self, target: Target) -> str:
        prompt = chat_template.render(
            target.chat_template,
            self.messages,
            bos_token=target.bos_token,
            eos_token=target.eos_token,
            other_tokens=dict(target.other_tokens),
            tools=self.plan.tools,
            add_generation_prompt=self.asks,
        )
        return prompt + self.plan.prompt_ending


def rendered(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates take them.

    Raises:
        InvalidArgument: a field is missing, or stands where it means nothing.
    """
    return [_rendered(message, f"messages[{n}]") for n, message in enumerate(messages)]


def arguments(text: str, field: str) -> chat_template.Arguments:
    """The arguments of a call that was made before.

    Raises:
        InvalidArgument: they are no JSON object.
    """
    try:
        if isinstance(json.loads(text), dict):
            return chat_template.Arguments(text)
    except (ValueError, RecursionError):
        pass
    raise InvalidArgument(f"'{field}' must be the text of a JSON object", field=field)


def _rendered(message: Message, place: str) -> dict[str, Any]:
    _check(message, place)
    # `developer` is OpenAI's newer word for `system`; models are trained on the older.
    role = "system" if message.role == "developer" else message.role
    document: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if message.name is not None:
        document["name"] = message.name
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        document["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{n}]") for n, call in enumerate(message.tool_calls)
        ]
    return document


def _check(message: Message, place: str) -> None:
    if message.content is None and not message.tool_calls:
        raise InvalidArgument(
            f"Missing required parameter: '{place}.content'.",
            reason="MISSING_REQUIRED_PARAMETER",
            field=f"{place}.content",
        )
    if message.tool_calls and message.role != "assistant":
        raise InvalidArgument(
            "only the assistant's messages hold tool calls", field=f"{place}.tool_calls"
        )
    if (message.tool_call_id is not None) != (message.role == "tool"):
        raise InvalidArgument(
            "a message of the role 'tool', and no other, says which call it answers",
            field=f"{place}.tool_call_id",
        )


def _call(call: CallMade, place: str) -> dict[str, Any]:
    given = arguments(call.function.arguments, f"{place}.function.arguments")
    function = {"name": call.function.name, "arguments": given}
    return {"id": call.id, "type": "function", "function": function}


def _text(content: str | Sequence[TextPart] | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
