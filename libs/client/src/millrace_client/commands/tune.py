"""``millrace tune``: fine-tuning."""

from collections.abc import Iterator
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
from millrace_client.uploads import file_id
from millrace_client.watching import metrics, watch

app = typer.Typer(help="Fine-tune models that exist, on conversations.")
_COLUMNS: Columns = {
    "job": lambda j: j["id"],
    "base": lambda j: j["model"],
    "state": lambda j: state(j["status"]),
    "progress": lambda j: text.progress(j.get("progress")),
    "tuned model": lambda j: j.get("fine_tuned_model"),
    "created": created,
}
_CHECKPOINT_COLUMNS: Columns = {
    "checkpoint": lambda c: c["id"],
    "step": lambda c: c["step_number"],
    "loss": lambda c: c["metrics"].get("train_loss"),
    "validation loss": lambda c: c["metrics"].get("valid_loss"),
    "model": lambda c: c["fine_tuned_model_checkpoint"],
    "created": created,
}
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="ftjob-…")]


@app.command()
def create(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="demo, demo@3 or ft:…")],
    file: Annotated[
        str, typer.Option("--file", "-f", help="OpenAI chat JSONL: a path, or file-… uploaded.")
    ],
    validation_file: Annotated[str, typer.Option("--validation-file")] = "",
    suffix: Annotated[str, typer.Option("--suffix", help="Part of the tuned model's id.")] = "",
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Conversations a step.")] = None,
    learning_rate_multiplier: Annotated[
        float | None, typer.Option("--learning-rate-multiplier")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Of the low-rank adapter.")] = None,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
    request_id: Annotated[str, typer.Option("--request-id", help="Same id, same job.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Start a fine-tuning job (LoRA). It succeeds once the tuned model is served.

    [bold]Example[/bold]

      millrace tune create --model demo --file pairs.jsonl --suffix docs --epochs 2
    """
    hyperparameters = {
        "n_epochs": epochs,
        "batch_size": batch,
        "learning_rate_multiplier": learning_rate_multiplier,
    }
    given = {key: value for key, value in hyperparameters.items() if value is not None}
    supervised: Json = {"hyperparameters": given}
    if rank is not None:
        supervised["lora"] = {"rank": rank}
    with api(context) as client:
        body: Json = {
            "model": model,
            "training_file": file_id(client, file, purpose="fine-tune"),
            "method": {"type": "supervised", "supervised": supervised},
        }
        if validation_file:
            body["validation_file"] = file_id(client, validation_file, purpose="fine-tune")
        if suffix:
            body["suffix"] = suffix
        if seed is not None:
            body["seed"] = seed
        show(client.tuning_jobs.create(body, request_id=request_id), as_json=as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List jobs, newest first."""
    with api(context) as client:
        found = client.tuning_jobs.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no fine-tuning jobs yet")


@app.command("show")
def show_(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Show one job, its checkpoints and what happened to it."""
    with api(context) as client:
        found = client.tuning_jobs.get(job)
        checkpoints = client.tuning_jobs.children(job, "checkpoints")
        events = client.tuning_jobs.children(job, "events", 20)
    if as_json:
        show({**found, "checkpoints": checkpoints, "events": events}, as_json=True)
        return
    show(found, as_json=False)
    if checkpoints:
        console().print(table(checkpoints, _CHECKPOINT_COLUMNS))
    for event in reversed(events):
        console().print(_event_line(event), markup=False)


@app.command("watch")
def watch_(context: typer.Context, job: JobArgument) -> None:
    """Follow a job until its model is served. Exit status 1 if it fails."""
    with api(context) as client:
        seen: set[str] = set()
        watch(lambda: client.tuning_jobs.get(job), metrics, lambda: _new_events(client, job, seen))


@app.command()
def cancel(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job for good."""
    with api(context) as client:
        show(client.tuning_jobs.act(job, "cancel"), as_json=as_json)


@app.command()
def pause(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job after its newest checkpoint, to be resumed."""
    with api(context) as client:
        show(client.tuning_jobs.act(job, "pause"), as_json=as_json)


@app.command()
def resume(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Take a paused job up from its newest checkpoint."""
    with api(context) as client:
        show(client.tuning_jobs.act(job, "resume"), as_json=as_json)


def _new_events(client: Millrace, job: str, seen: set[str]) -> Iterator[str]:
    for event in reversed(client.tuning_jobs.children(job, "events")):
        if event["id"] not in seen:
            seen.add(event["id"])
            yield _event_line(event)


def _event_line(event: Json) -> str:
    return f"{text.clock(event['created_at'])} {event['message']}"
