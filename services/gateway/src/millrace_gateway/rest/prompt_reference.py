"""``prompt`` in a request: a template to ask with, by its id.

Reference: https://platform.openai.com/docs/api-reference/responses/create (prompt). In
``/v1/chat/completions`` it is beyond the OpenAI API.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace_examples.prompt_template import Template, VariableError, render
from millrace_gateway.rest.caller import Caller
from millrace_gateway.rest.prompt_versions import PromptVersion
from millrace_gateway.rest.shapes import RequestBody
from millrace_gateway.rest.tools import Tool
from millrace_runtime.errors import InvalidArgument, NotFound

_MAXIMUM_DIGITS = 9


class VariableText(RequestBody):
    """A text; images and files are no values here."""

    type: Literal["input_text", "text"]
    text: str


Variables = dict[str, str | VariableText]


class PromptReference(RequestBody):
    """``version`` left out is the newest; ``variables`` without a default have to be given."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    version: str | None = None
    variables: Variables | None = None


@dataclass(frozen=True)
class PromptUse:
    """What a template gives a request; without one, nothing.

    Attributes:
        messages: as chat templates take them.
        said: what a response repeats of it.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Tool] | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


NOT_USED = PromptUse()


async def use(caller: Caller, reference: PromptReference | None) -> PromptUse:
    """
    Raises:
        NotFound: there is no such prompt, or no such version.
        InvalidArgument: a variable is missing or unknown, naming ``prompt.variables.x``.
    """
    if reference is None:
        return NOT_USED
    version = await find(caller, reference.id, reference.version)
    echoed = reference.model_dump(exclude_none=True) | {"version": str(version.number)}
    messages = filled(version.spoken, reference.variables, "prompt.variables")
    return PromptUse(messages, version.tools or None, {"prompt": echoed})


async def find(caller: Caller, id: str, version: str | None) -> PromptVersion:
    """A version of a prompt of the caller's tenant; None is the newest.

    Raises:
        NotFound: naming ``prompt.id`` or ``prompt.version``.
    """
    try:
        name = caller.name("prompts", id, "prompt")
    except NotFound as error:
        raise NotFound(str(error), reason="PROMPT_NOT_FOUND", field="prompt.id") from None
    number = 0 if version is None else _number(id, version)
    return await caller.gateway.prompts.get(name, number)


def filled(
    template: Template, variables: Variables | None, place: str
) -> Sequence[Mapping[str, Any]]:
    """The template's messages with the variables' values.

    Raises:
        InvalidArgument: one is missing or unknown, naming it below ``place``.
    """
    values = {
        name: value if isinstance(value, str) else value.text
        for name, value in (variables or {}).items()
    }
    try:
        return render(template, values)
    except VariableError as error:
        where = f"{place}.{error.name}"
        raise InvalidArgument(
            f"{where}: {error}", reason="INVALID_PROMPT_VARIABLE", field=where
        ) from None


def _number(id: str, version: str) -> int:
    is_number = version.isascii() and version.isdigit() and len(version) <= _MAXIMUM_DIGITS
    if not is_number or not int(version):
        raise NotFound(
            f"prompt {id} has no version {version!r}; versions are 1, 2, …",
            reason="PROMPT_VERSION_NOT_FOUND",
            field="prompt.version",
        )
    return int(version)
