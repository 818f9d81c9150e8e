"""``millrace compressions``: checkpoints made fit for the hardware that serves them."""

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
    show,
    show_list,
    state,
)

app = typer.Typer(help="See what became of each checkpoint, and what was measured.")
_COLUMNS: Columns = {
    "compression": lambda c: c["id"],
    "model": lambda c: c["model"],
    "step": lambda c: f"{c['checkpoint_step']}{' final' if c['checkpoint_final'] else ''}",
    "target": lambda c: c["target"],
    "state": lambda c: state(_outcome(c)),
    "perplexity": lambda c: _perplexity_increase(c["measurements"]),
    "size": lambda c: text.size(c["measurements"].get("artifact_size_bytes")),
    "took": lambda c: _seconds(c),
    "created": created,
}


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="Of this model alone.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List compressions, newest first."""
    with api(context) as client:
        found = client.compressions.list(limit, **({"model": model} if model else {}))
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no compressions yet")


@app.command("show")
def show_(
    context: typer.Context,
    compression: Annotated[str, typer.Argument(metavar="COMPRESSION", help="compression-…")],
    as_json: JsonOption = False,
) -> None:
    """Show one compression: measurements, verdict, reasons."""
    with api(context) as client:
        show(client.compressions.get(compression), as_json=as_json)


def _outcome(compression: Json) -> str:
    verdict = compression.get("verdict")
    rejected = compression["status"] == "succeeded" and verdict and not verdict["passed"]
    return "rejected" if rejected else str(compression["status"])


def _perplexity_increase(measured: Json) -> str:
    before, after = measured.get("original_perplexity"), measured.get("artifact_perplexity")
    return f"{(after - before) / before:+.2%}" if before and after else "-"


def _seconds(compression: Json) -> str:
    started, finished = compression.get("started_at"), compression.get("finished_at")
    return text.duration(finished - started) if started and finished else "-"
