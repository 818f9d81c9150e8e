"""``tools`` and ``tool_choice``: the functions that a model may call, or must.

Reference: https://platform.openai.com/docs/guides/function-calling
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace_gateway.rest.formats import FormatName, JsonSchema
from millrace_gateway.rest.shapes import RequestBody
from millrace_gateway.tool_calls import CLOSE, OPEN, ToolCallReader
from millrace_runtime.errors import InvalidArgument


class FunctionDefinition(RequestBody):
    name: FormatName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(RequestBody):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(RequestBody):
    name: FormatName


class NamedTool(RequestBody):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
Tools = Annotated[list[Tool], Field(max_length=128)]


@dataclass(frozen=True)
class ToolPlan:
    """What follows from a request's tools.

    Attributes:
        tools: as chat templates take them; empty when none are to be called.
        format: what the answer must be when a call is demanded; the engine enforces it.
        is_single: not more than one call is wanted.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    format: Mapping[str, Any] | None = None
    is_single: bool = False

    @property
    def prompt_ending(self) -> str:
        """What is written for the model, so that it goes on within a call."""
        return f"{OPEN}\n" if self.format else ""

    @property
    def fields(self) -> Mapping[str, str]:
        """What is wrong with the form of a demanded call is wrong with the tools."""
        return {"response_format": "tools"} if self.format else {}

    @property
    def stops(self) -> list[str]:
        """Where the answer ends beside the client's own stops."""
        return [CLOSE] if self.tools and self.is_single and not self.format else []

    def reader(self) -> ToolCallReader | None:
        """Finds the calls in one answer; None when there can be none."""
        if not self.tools:
            return None
        names = {tool["function"]["name"] for tool in self.tools}
        return ToolCallReader(names, is_forced=self.format is not None)


def plan(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolPlan:
    """The plan for a request.

    Raises:
        InvalidArgument: the choice is none of the tools, a name is there twice, or ``strict``
            is asked for where the engine cannot hold the model to it.
    """
    functions = [tool.function for tool in tools or ()]
    _check(functions, choice)
    if not functions or choice == "none":
        return ToolPlan()
    demanded = functions if choice == "required" else []
    if isinstance(choice, NamedTool):
        demanded = [one for one in functions if one.name == choice.function.name]
    return ToolPlan(
        tools=[{"type": "function", "function": _described(one)} for one in functions],
        format={"type": "json_schema", "schema": _calls(demanded)} if demanded else None,
        is_single=parallel is False,
    )


def answer_format(tools: ToolPlan, wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the engine holds the answer to: a demanded call, or the form that is ``wanted``.

    Raises:
        InvalidArgument: both.
    """
    if tools.format and wanted:
        raise InvalidArgument(
            "a demanded call has a form of its own; leave the other form, or tool_choice, out",
            field="tool_choice",
        )
    return tools.format or wanted


def _check(functions: Sequence[FunctionDefinition], choice: ToolChoice | None) -> None:
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise InvalidArgument("two tools have the same name", field="tools")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidArgument(
            f"there is no tool {choice.function.name!r} in 'tools'", field="tool_choice"
        )
    if choice == "required" and not names:
        raise InvalidArgument("tool_choice 'required' needs 'tools'", field="tool_choice")
    if choice not in (None, "auto"):
        return
    for index, function in enumerate(functions):
        if function.strict:
            raise InvalidArgument(
                "strict holds only where a call is demanded: with tool_choice 'required' or a "
                "named function",
                reason="UNSUPPORTED_VALUE",
                field=f"tools[{index}].function.strict",
            )


def _described(function: FunctionDefinition) -> dict[str, Any]:
    return function.model_dump(exclude_none=True, exclude={"strict"})


def _calls(functions: Sequence[FunctionDefinition]) -> dict[str, Any]:
    """The schema of a call of one of ``functions``."""
    definitions: dict[str, Any] = {}
    calls = [_call(function, definitions) for function in functions]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _call(function: FunctionDefinition, definitions: dict[str, Any]) -> dict[str, Any]:
    arguments = function.parameters or {"type": "object"}
    place = f"#/$defs/{function.name}"
    moved = _moved(arguments, place)
    if moved != arguments:  # it refers to parts of itself, which are elsewhere now
        definitions[function.name] = moved
        arguments = {"$ref": place}
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema whose root is now at ``place``, with its references put right."""
    if isinstance(schema, list):
        return [_moved(inner, place) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }
