"""``millrace rollouts``: the road from one version to the next."""

from typing import Annotated

import typer

from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    JsonOption,
    LimitOption,
    created,
    show,
    show_list,
    state,
)
from millrace_client.rollout_watch import newest, watch_rollout

app = typer.Typer(help="Follow, hasten or reverse the way of a version into service.")
_COLUMNS: Columns = {
    "rollout": lambda r: r["id"],
    "model": lambda r: r["model"],
    "versions": lambda r: f"{r['from_version'] or '-'} → {r['to_version']}",
    "state": lambda r: state("paused" if r.get("paused") else r["status"]),
    "share": lambda r: f"{r['traffic_share']:.0%}",
    "requests": lambda r: r["requests"],
    "failed": lambda r: r["failures"],
    "why": lambda r: r["reason"],
    "created": created,
}
RolloutArgument = Annotated[str, typer.Argument(metavar="ROLLOUT", help="rollout-…")]


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="Of this model alone.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, newest first."""
    with api(context) as client:
        found = client.rollouts.list(limit, **({"model": model} if model else {}))
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no rollouts yet")


@app.command("show")
def show_(context: typer.Context, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Show one rollout."""
    with api(context) as client:
        show(client.rollouts.get(rollout), as_json=as_json)


@app.command("watch")
def watch_(
    context: typer.Context,
    rollout: Annotated[str, typer.Argument(metavar="[ROLLOUT]", help="rollout-…")] = "",
    model: Annotated[
        str, typer.Option("--model", "-M", help="The one under way, else the newest, of a model.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Follow a rollout to its end, live. Exit status 1 if it is reversed.

    With --json: an object a line, at each change.
    """
    if bool(rollout) == bool(model):
        raise typer.BadParameter("name a rollout, or a model by --model")
    with api(context) as client:
        watch_rollout(client, rollout or newest(client, model), as_json=as_json)


@app.command()
def create(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1)],
    as_json: JsonOption = False,
) -> None:
    """Roll out a version, an older one too, by the deployment's strategy."""
    with api(context) as client:
        made = client.rollouts.create({"model": model, "version": version})
        show(made, as_json=as_json)


@app.command()
def pause(context: typer.Context, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Keep a rollout where it is, with its share. One that fails is reversed all the same."""
    with api(context) as client:
        show(client.rollouts.act(rollout, "pause"), as_json=as_json)


@app.command()
def resume(context: typer.Context, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Let a paused rollout go on."""
    with api(context) as client:
        show(client.rollouts.act(rollout, "resume"), as_json=as_json)


@app.command()
def promote(context: typer.Context, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Settle a rollout whose new version answers now, whatever it has still to show."""
    with api(context) as client:
        show(client.rollouts.act(rollout, "promote"), as_json=as_json)


@app.command()
def reverse(
    context: typer.Context,
    rollout: RolloutArgument,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the version.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Go back to the version before."""
    with api(context) as client:
        show(client.rollouts.act(rollout, "reverse", {"reason": reason}), as_json=as_json)
