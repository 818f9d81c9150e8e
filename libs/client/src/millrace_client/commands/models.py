"""``millrace models [card] | versions``: what is served, of what it is made, what could be."""

from typing import Annotated

import typer

from millrace_client import text
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    Json,
    JsonOption,
    LimitOption,
    created,
    show_list,
    state,
)

_MODEL_COLUMNS: Columns = {
    "model": lambda m: m["id"],
    "owned by": lambda m: m.get("owned_by"),
    "created": created,
}
VERSION_COLUMNS: Columns = {
    "version": lambda v: v["id"],
    "state": lambda v: state(v.get("status")),
    "target": lambda v: v.get("target"),
    "step": lambda v: f"{v['checkpoint_step']}{' final' if v['checkpoint_final'] else ''}",
    "size": lambda v: _sizes(v["measurements"]),
    "perplexity": lambda v: _perplexities(v["measurements"]),
    "first token": lambda v: text.duration(
        (v.get("measurements") or {}).get("first_token_seconds")
    ),
    "per token": lambda v: text.duration(v["measurements"].get("token_seconds")),
    "created": created,
}


app = typer.Typer(help="List the models that can be talked to now.")


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the models that can be talked to now."""
    if context.invoked_subcommand is not None:
        return
    with api(context) as client:
        found = client.models.list()
    show_list(found, _MODEL_COLUMNS, as_json=as_json, empty="nothing is served yet")


@app.command()
def card(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A tuned model, or one of its versions.")],
) -> None:
    """Print a tuned model's card: its data, method, measurements, parity and lineage."""
    with api(context) as client:
        typer.echo(client.card(model), nl=False)


def versions(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="Of this model alone.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List versions: what each was made of, its size, perplexity and speed.

    Figures are of the original checkpoint, then of what serves it.
    """
    with api(context) as client:
        found = client.versions.list(limit, **({"model": model} if model else {}))
    show_list(found, VERSION_COLUMNS, as_json=as_json, empty="there are no versions yet")


def _sizes(measured: Json) -> str:
    before, after = measured.get("original_size_bytes"), measured.get("artifact_size_bytes")
    return f"{text.size(before)} → {text.size(after)}" if after else "-"


def _perplexities(measured: Json) -> str:
    before, after = measured.get("original_perplexity"), measured.get("artifact_perplexity")
    return f"{before:.3f} → {after:.3f}" if before and after else "-"
