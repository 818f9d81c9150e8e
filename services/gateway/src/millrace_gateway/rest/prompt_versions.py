"""Versions of prompts that the gateway knows: asked once, as a version never changes."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from millrace.data.v1 import prompts_pb2 as pb
from millrace_examples.prompt_template import Template, template_of
from millrace_gateway import upstream
from millrace_gateway.rest import errors
from millrace_gateway.rest.conversation import Message, rendered
from millrace_gateway.rest.tools import Tool
from millrace_runtime.errors import InvalidArgument, NotFound, Unavailable

FRESH_SECONDS = 60.0
"""How long a version is used without asking whether its prompt was deleted."""

MAXIMUM_CHARACTERS = 16 * 2**20
_MESSAGES = TypeAdapter(list[Message])
_TOOLS = TypeAdapter(list[Tool])
# How a request that uses a prompt calls the fields of the service's.
_FIELDS = {"parent": "prompt.id", "name": "prompt.id", "number": "prompt.version"}

Ask = Callable[[pb.GetPromptVersionRequest], Awaitable[pb.GetPromptVersionResponse]]


@dataclass(frozen=True)
class PromptVersion:
    """A version as it is used.

    Attributes:
        template: as it was written.
        spoken: the same, its messages as chat templates take them.
        tools: the template's, for requests that name none.
    """

    number: int
    digest: str
    template: Template
    spoken: Template
    tools: Sequence[Tool]
    characters: int


@dataclass(frozen=True)
class _Known:
    version: PromptVersion
    asked_at: float  # of the clock


class PromptVersions:
    """Asks the data service for versions, and keeps those that were asked for last.

    What is known is also what is used while the data service does not answer.
    """

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._known: dict[tuple[str, int], _Known] = {}
        self._characters = 0

    async def get(self, name: str, number: int) -> PromptVersion:
        """A version of the prompt ``name``; 0 is the newest, which is asked for each time.

        Raises:
            NotFound: naming ``prompt.id`` or ``prompt.version``.
            InvalidArgument: it cannot be used here.
            Unavailable: the data service does not answer, and the version is not known.
        """
        known = self._known.get((name, number))
        if known and number and self._clock() < known.asked_at + FRESH_SECONDS:
            return known.version
        request = pb.GetPromptVersionRequest(parent=name, number=number)
        try:
            response = await upstream.call(self._ask, request, _FIELDS)
        except Unavailable:
            if known is None:
                raise
            return known.version
        except NotFound:
            self.forget(name)
            raise
        version = _version(response.version)
        self._keep((name, number), version)
        return version

    def forget(self, name: str) -> None:
        """Ask again for every version of a prompt."""
        for key in [key for key in self._known if key[0] == name]:
            self._drop(key)

    def _keep(self, key: tuple[str, int], version: PromptVersion) -> None:
        self._drop(key)
        self._known[key] = _Known(version, self._clock())
        self._characters += version.characters
        while self._characters > MAXIMUM_CHARACTERS and len(self._known) > 1:
            self._drop(next(iter(self._known)))

    def _drop(self, key: tuple[str, int]) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._characters -= known.version.characters


def spoken(template: Template) -> Template:
    """``template`` with its messages as chat templates take them.

    Raises:
        InvalidArgument: a message cannot be sent to a model, naming ``messages[0].…``.
    """
    return Template(
        messages=tuple(_sent(template.messages, "messages")),
        variables=template.variables,
        examples=tuple(_sent(template.examples, "examples")),
        tools=template.tools,
    )


def tools_of(template: Template) -> list[Tool]:
    """
    Raises:
        InvalidArgument: a tool cannot be called here, naming ``tools[0].…``.
    """
    try:
        return _TOOLS.validate_python(list(template.tools))
    except ValidationError as error:
        raise _refused("tools", error, list(template.tools)) from None


def _sent(messages: Sequence[Mapping[str, Any]], place: str) -> list[dict[str, Any]]:
    given = list(messages)
    try:
        return rendered(_MESSAGES.validate_python(given))
    except ValidationError as error:
        raise _refused(place, error, given) from None
    except InvalidArgument as error:
        error.field = error.field.replace("messages", place, 1)
        raise


def _refused(place: str, error: ValidationError, given: list[Any]) -> InvalidArgument:
    first = error.errors()[0]
    field = place + errors.parameter(first["loc"], given)
    return InvalidArgument(f"{field}: {first['msg']}", reason="INVALID_PROMPT", field=field)


def _version(message: pb.PromptVersion) -> PromptVersion:
    template = template_of(orjson.loads(message.template_json))
    try:
        return PromptVersion(
            number=message.number,
            digest=message.digest,
            template=template,
            spoken=spoken(template),
            tools=tools_of(template),
            characters=len(message.template_json),
        )
    except InvalidArgument as error:  # it came by another road than this API
        raise InvalidArgument(
            f"this prompt cannot be used here: {error}", reason=error.reason, field="prompt.id"
        ) from error
