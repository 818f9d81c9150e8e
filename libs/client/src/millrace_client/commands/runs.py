"""``millrace runs``: pre-training."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from millrace_client import text
from millrace_client.api import Json, Millrace
from millrace_client.connection import api
from millrace_client.output import (
    Columns,
    JsonOption,
    LimitOption,
    console,
    created,
    show,
    show_list,
    state,
    table,
)
from millrace_client.watching import metrics, watch

app = typer.Typer(help="Train models from nothing, or go on from a checkpoint.")
_COLUMNS: Columns = {
    "run": lambda r: r["id"],
    "model": lambda r: r["model"],
    "state": lambda r: state(r["status"]),
    "progress": lambda r: text.progress(r.get("progress")),
    "loss": lambda r: (r.get("progress") or {}).get("metrics", {}).get("loss"),
    "parameters": lambda r: text.number(r.get("parameter_count") or None),
    "created": created,
}
_CHECKPOINT_COLUMNS: Columns = {
    "checkpoint": lambda c: c["id"],
    "step": lambda c: f"{c['step']}{' final' if c['final'] else ''}",
    "tokens seen": lambda c: text.number(c["tokens_seen"]),
    "loss": lambda c: c["train_loss"],
    "held-out loss": lambda c: c["heldout_loss"],
    "size": lambda c: text.size(c["size_bytes"]),
    "created": created,
}
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="run-…")]


@app.command()
def create(
    context: typer.Context,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="dataset-…; it may still build.")],
    model: Annotated[str, typer.Option("--model", "-M", help="Id that it is served under.")],
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option("--checkpoint-every")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Sequences a step.")] = None,
    context_length: Annotated[int | None, typer.Option("--context-length")] = None,
    hidden_size: Annotated[int | None, typer.Option("--hidden-size")] = None,
    layers: Annotated[int | None, typer.Option("--layers")] = None,
    processes: Annotated[int | None, typer.Option("--processes")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    initial_checkpoint: Annotated[
        str, typer.Option("--from", help="runs/run-…/checkpoints/ckpt-…, to go on from.")
    ] = "",
    request_id: Annotated[str, typer.Option("--request-id", help="Same id, same run.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Start a training run. Each checkpoint is then compressed, measured and served by itself.

    [bold]Example[/bold]

      millrace runs create --dataset dataset-… --model demo --steps 2000 --checkpoint-every 500
    """
    hyperparameters = {
        "total_steps": steps,
        "checkpoint_every_steps": checkpoint_every,
        "learning_rate": learning_rate,
        "batch_sequences": batch,
        "processes": processes,
        "seed": seed,
    }
    architecture = {
        "context_length": context_length,
        "hidden_size": hidden_size,
        "layers": layers,
    }
    body: Json = {
        "model": model,
        "dataset": dataset,
        "hyperparameters": _given(hyperparameters),
        "architecture": _given(architecture),
        **({"initial_checkpoint": initial_checkpoint} if initial_checkpoint else {}),
    }
    with api(context) as client:
        show(client.runs.create(body, request_id=request_id), as_json=as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List runs, newest first."""
    with api(context) as client:
        found = client.runs.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no runs yet")


@app.command("show")
def show_(context: typer.Context, run: RunArgument, as_json: JsonOption = False) -> None:
    """Show one run and its checkpoints."""
    with api(context) as client:
        found, checkpoints = client.runs.get(run), client.runs.children(run, "checkpoints")
    if as_json:
        show({**found, "checkpoints": checkpoints}, as_json=True)
        return
    show(found, as_json=False)
    if checkpoints:
        console().print(table(checkpoints, _CHECKPOINT_COLUMNS))


@app.command("watch")
def watch_(context: typer.Context, run: RunArgument) -> None:
    """Follow a run to its end: loss, speed, checkpoints. Exit status 1 if it fails."""
    with api(context) as client:
        seen: set[str] = set()
        watch(lambda: client.runs.get(run), metrics, lambda: _new_checkpoints(client, run, seen))


@app.command()
def cancel(context: typer.Context, run: RunArgument, as_json: JsonOption = False) -> None:
    """Stop a run for good; its checkpoints stay."""
    with api(context) as client:
        show(client.runs.act(run, "cancel"), as_json=as_json)


@app.command()
def pause(context: typer.Context, run: RunArgument, as_json: JsonOption = False) -> None:
    """Stop a run after its newest checkpoint, to be resumed."""
    with api(context) as client:
        show(client.runs.act(run, "pause"), as_json=as_json)


@app.command()
def resume(context: typer.Context, run: RunArgument, as_json: JsonOption = False) -> None:
    """Take a paused run up from its newest checkpoint."""
    with api(context) as client:
        show(client.runs.act(run, "resume"), as_json=as_json)


def _new_checkpoints(client: Millrace, run: str, seen: set[str]) -> Iterator[str]:
    for found in reversed(client.runs.children(run, "checkpoints")):
        if found["id"] not in seen:
            seen.add(found["id"])
            yield (
                f"checkpoint at step {found['step']}: loss {found['train_loss']:.4g}, "
                f"held-out {found['heldout_loss']:.4g}, {text.size(found['size_bytes'])}"
            )


def _given(values: Mapping[str, object]) -> Json:
    return {key: value for key, value in values.items() if value is not None}
