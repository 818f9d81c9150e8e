"""The messages of a grader that asks a model: from the Responses API's shape to chat's."""

from collections.abc import Mapping
from typing import Any

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.graders.fields import MAXIMUM_LIST_LENGTH, Fields
from millrace_tuner.graders.specification import Message, Part
from millrace_tuner.graders.templates import TemplateError
from millrace_tuner.graders.templates import parse as parse_template

_ROLES = ("user", "assistant", "system", "developer")
_PARTS = ("input_text", "output_text", "input_image", "input_audio")
_DETAILS = ("auto", "low", "high")
_FORMATS = ("wav", "mp3")


def parse(fields: Fields) -> tuple[Message, ...]:
    """The grader's ``input``.

    Raises:
        InvalidArgument
    """
    where = fields.path("input")
    documents = _items(fields.take("input"), where)
    return tuple(_message(each, f"{where}[{index}]") for index, each in enumerate(documents))


def _items(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAXIMUM_LIST_LENGTH:
        raise InvalidArgument(
            f"{where}: must be a list of 1 to {MAXIMUM_LIST_LENGTH} items", field=where
        )
    return value


def _message(document: Any, where: str) -> Message:
    fields = Fields(document, where)
    fields.optional_choice("type", ("message",))
    role = fields.choice("role", _ROLES)
    content = fields.take("content")
    inside = fields.path("content")
    if isinstance(content, list):
        found = _items(content, inside)
        parts = tuple(_part(each, f"{inside}[{index}]") for index, each in enumerate(found))
    else:
        parts = (_part(content, inside),)
    fields.refuse_others()
    return Message(role, parts)


def _part(document: Any, where: str) -> Part:
    if isinstance(document, str):
        try:
            return Part("text", parse_template(document))
        except TemplateError as error:
            raise InvalidArgument(f"{where}: {error}", field=where) from None
    fields = Fields(document, where)
    kind = fields.choice("type", _PARTS)
    if kind == "input_image":
        part = _image(fields)
    elif kind == "input_audio":
        part = _audio(fields.object("input_audio"))
    else:
        part = Part("text", fields.template("text"))
    fields.refuse_others()
    return part


def _image(fields: Fields) -> Part:
    detail = fields.optional_choice("detail", _DETAILS)
    return Part("image", fields.template("image_url"), detail or "auto")


def _audio(fields: Fields) -> Part:
    part = Part("audio", fields.template("data"), fields.choice("format", _FORMATS))
    fields.refuse_others()
    return part


def filled(messages: tuple[Message, ...], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a chat completion, with their values.

    Raises:
        UnknownVariable
    """
    return [{"role": each.role, "content": _content(each.parts, values)} for each in messages]


def _content(parts: tuple[Part, ...], values: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and parts[0].kind == "text":
        return parts[0].content.fill(values)
    return [_chat_part(part, part.content.fill(values)) for part in parts]


def _chat_part(part: Part, content: str) -> dict[str, Any]:
    if part.kind == "image":
        return {"type": "image_url", "image_url": {"url": content, "detail": part.detail}}
    if part.kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": content, "format": part.detail}}
    return {"type": "text", "text": content}
