"""``millrace rollouts``: the road from one version to the next."""

from typing import Annotated

import typer

from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    Json,
    JsonOption,
    LimitOption,
    created,
    show,
    show_list,
    state,
)
from millrace_client.watching import watch

app = typer.Typer(help="Follow, hasten or reverse the way of a version into service.")
_COLUMNS: Columns = {
    "rollout": lambda r: r["id"],
    "model": lambda r: r["model"],
    "versions": lambda r: f"{r['from_version'] or '-'} → {r['to_version']}",
    "state": lambda r: state(r["status"]),
    "share": lambda r: f"{r['traffic_share']:.0%}",
    "requests": lambda r: r["requests"],
    "failed": lambda r: r["failures"],
    "why": lambda r: r["reason"],
    "created": created,
}
_ENDED = ("settled", "reversed", "superseded")
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
def watch_(context: typer.Context, rollout: RolloutArgument) -> None:
    """Follow a rollout to its end. Exit status 1 if it is reversed."""
    with api(context) as client:
        watch(lambda: client.rollouts.get(rollout), _describe, ended=_ENDED)


@app.command()
def promote(context: typer.Context, rollout: RolloutArgument, as_json: JsonOption = False) -> None:
    """Settle a rollout now, whatever its canary has still to show."""
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


def _describe(rollout: Json) -> str:
    return (
        f"{rollout['status']}  {rollout['model']}@{rollout['to_version']}  "
        f"share {rollout['traffic_share']:.0%}  requests {rollout['requests']}  "
        f"failed {rollout['failures']}  {rollout['reason']}"
    )
