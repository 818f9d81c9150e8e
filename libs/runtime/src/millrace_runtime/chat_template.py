"""Chats to prompt text, byte for byte as ``transformers``' ``apply_chat_template`` does it.

What a model was trained on and what it is asked must be the same text, so this follows
transformers 5.0 (``utils/chat_template_utils.py``, ``_compile_jinja_template``) to the letter:
an immutable sandbox, trimmed blocks, loop controls, its ``tojson``, ``raise_exception`` and
``strftime_now``, and its ``generation`` tag. Importing transformers itself would take seconds
and hundreds of megabytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from millrace_runtime.errors import FailedPrecondition, InvalidArgument

_REMEMBERED_TEMPLATES = 128


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}``: marks the assistant's words, and prints them."""

    tags = {"generation"}  # noqa: RUF012  # declared so by Jinja

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_print", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _print(self, caller: Callable[[], str]) -> str:
        return caller()


class Arguments(str):
    """A call's arguments, as JSON text. ``tojson`` prints the value, not a string.

    Some templates print arguments as they are, as text; others expect the object, and
    serialise it. With this both are right.
    """

    __slots__ = ()


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    other_tokens: Mapping[str, str] = MappingProxyType({}),
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    now: Callable[[], datetime] = datetime.now,
) -> str:
    """The prompt that asks for the assistant's next message, as of ``now``.

    Raises:
        FailedPrecondition: the model has no chat template, or a broken one.
        InvalidArgument: the template knows no tools, or refuses these messages; the message
            says why.
    """
    if not template:
        raise FailedPrecondition(
            "the model has no chat template; use /v1/completions",
            reason="NO_CHAT_TEMPLATE",
            field="model",
        )
    tokens = {**other_tokens, "bos_token": bos_token, "eos_token": eos_token}
    try:
        compiled, knows_tools = _compile(template)
        if tools and not knows_tools:
            raise InvalidArgument(
                "the model's chat template knows no tools: it was not trained to call any",
                reason="UNSUPPORTED_VALUE",
                field="tools",
            )
        return compiled.render(
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=lambda format: now().strftime(format),
            **{name: token for name, token in tokens.items() if token},
        )
    except jinja2.TemplateSyntaxError as error:
        raise FailedPrecondition(
            f"the model's chat template is broken: {error}", reason="BROKEN_CHAT_TEMPLATE"
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise InvalidArgument(
            f"the model's chat template refuses these messages: {error}", field="messages"
        ) from error


@lru_cache(maxsize=_REMEMBERED_TEMPLATES)
def _compile(template: str) -> tuple[jinja2.Template, bool]:
    """The template, and whether it has a place for tools."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    variables = jinja2.meta.find_undeclared_variables(environment.parse(template))
    return environment.from_string(template), "tools" in variables


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it does not escape HTML."""
    return json.dumps(
        _plain(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Arguments):
        return json.loads(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
