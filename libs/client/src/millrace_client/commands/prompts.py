"""``millrace prompts``: templates with variables and few-shot examples, in versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from millrace_client import text
from millrace_client.api import Collection, Json
from millrace_client.commands.tune_options import json_object
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show,
    show_list,
)

_HELP = """Keep prompts as templates, with variables and few-shot examples, in versions.

The file is JSON: messages, whose texts may hold {{name}}; and as you need them, variables
(name → default, description), examples (input and output, or messages) and tools.

[bold]Example[/bold]

  millrace prompts create support.json --name support

  millrace prompts render pmpt-… --set question='Where is my order?'

  millrace tune create -M demo -f rows.jsonl --prompt pmpt-…@2
"""
app = typer.Typer(help=_HELP)
_COLUMNS: Columns = {
    "prompt": lambda p: p["id"],
    "name": lambda p: p["name"],
    "newest": lambda p: p["latest_version"],
    "changed": lambda p: text.ago(p["updated_at"]),
    "created": created,
}
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The template's JSON.", exists=True, dir_okay=False)
]
PromptArgument = Annotated[
    str, typer.Argument(metavar="PROMPT", help="pmpt-…, or one version: pmpt-…@2.")
]
RequestIdOption = Annotated[str, typer.Option("--request-id", help="Same id, made once.")]


@app.command()
def create(
    context: typer.Context,
    file: FileArgument,
    name: Annotated[str, typer.Option("--name", help="For people; else the file's.")] = "",
    request_id: RequestIdOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a prompt with its version 1."""
    body = {**json_object(file, "FILE"), "name": name or file.stem}
    with api(context) as client:
        show(client.prompts.create(body, request_id=request_id), as_json=as_json)


@app.command()
def update(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="pmpt-…")],
    file: FileArgument,
    request_id: RequestIdOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add a version, which is the newest from then on; those that are there stay."""
    body = json_object(file, "FILE")
    with api(context) as client:
        versions = Collection(client, f"/v1/prompts/{prompt}/versions")
        made = versions.create(body, request_id=request_id)
    show(made, as_json=as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List prompts, newest first."""
    with api(context) as client:
        found = client.prompts.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no prompts yet")


@app.command("show")
def show_(context: typer.Context, prompt: PromptArgument, as_json: JsonOption = False) -> None:
    """Show a version of a prompt, the newest unless you name one."""
    id, version = parts_of(prompt)
    with api(context) as client:
        found = client.request("GET", f"/v1/prompts/{id}/versions/{version or 'latest'}")
    show(found, as_json=as_json)


@app.command()
def render(
    context: typer.Context,
    prompt: PromptArgument,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="A variable; again for more."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is asked with these variables; nothing is generated."""
    id, version = parts_of(prompt)
    body: Json = {"variables": variables_of(values or [])}
    if version:
        body["version"] = version
    with api(context) as client:
        rendering = client.request("POST", f"/v1/prompts/{id}/render", json=body)
    if as_json:
        print_json(rendering)
        return
    for message in rendering["messages"]:
        console().print(f"[bold]{message['role']}[/]")
        console().print(message.get("content") or "", markup=False)


@app.command()
def delete(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="pmpt-…")],
    as_json: JsonOption = False,
) -> None:
    """Delete a prompt with all its versions; jobs that were made with it keep theirs."""
    with api(context) as client:
        show(client.prompts.delete(prompt), as_json=as_json)


def parts_of(prompt: str) -> tuple[str, str]:
    """Id and version of ``pmpt-…@2``; the version is empty where none is named."""
    id, _, version = prompt.partition("@")
    return id, version


def variables_of(given: Sequence[str]) -> dict[str, str]:
    """
    Raises:
        BadParameter: one is not NAME=VALUE.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{one!r} is not NAME=VALUE", param_hint="--set")
        found[name] = value
    return found
