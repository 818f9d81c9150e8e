"""``--prompt`` of ``millrace tune create``, and what it becomes in the request."""

from typing import Annotated

import typer

from millrace_client.api import Json
from millrace_client.commands.prompts import parts_of

_PANEL = "Data"

PromptOption = Annotated[
    str,
    typer.Option(
        "--prompt",
        metavar="PROMPT",
        rich_help_panel=_PANEL,
        help="Template for a file of columns: pmpt-… or pmpt-…@2.",
    ),
]
CompletionOption = Annotated[
    str,
    typer.Option(
        "--completion",
        metavar="COLUMN",
        rich_help_panel=_PANEL,
        help="Column of the answer; else completion, output or answer.",
    ),
]


def prompt_of(prompt: str, completion: str) -> Json | None:
    """The request's ``prompt``; None: there is none.

    Raises:
        BadParameter: a column without a prompt.
    """
    if not prompt:
        if completion:
            raise typer.BadParameter("needs --prompt", param_hint="--completion")
        return None
    id, version = parts_of(prompt)
    named = {"version": version, "completion": completion}
    return {"id": id, **{key: value for key, value in named.items() if value}}
