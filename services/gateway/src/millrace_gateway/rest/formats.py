"""``response_format``: the form that an answer must have, which the engine enforces.

Reference: https://platform.openai.com/docs/guides/structured-outputs
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from millrace_gateway.rest.shapes import RequestBody

_MAXIMUM_DEPTH = 64


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse what no parser after this one would take."""
    level: list[Any] = [schema]
    for _ in range(_MAXIMUM_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return schema
    raise ValueError(f"it is nested more than {_MAXIMUM_DEPTH} deep")


def _inside(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [item for item in inner if isinstance(item, dict | list)]


JsonSchema = Annotated[dict[str, Any], AfterValidator(_bounded)]
FormatName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class TextFormat(RequestBody):
    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    type: Literal["json_object"]


class NamedSchema(RequestBody):
    """``strict`` or not, the engine keeps to the schema."""

    name: FormatName
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(RequestBody):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


def engine_format(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    """What the engine is told; None when any text will do."""
    if isinstance(wanted, JsonObjectFormat):
        return {"type": "json_object"}
    if isinstance(wanted, JsonSchemaFormat):
        return {"type": "json_schema", "schema": wanted.json_schema.schema_}
    return None
