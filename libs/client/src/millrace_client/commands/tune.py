"""``millrace tune``: fine-tuning."""

import csv
import io
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from millrace_client import text
from millrace_client.api import Json, Millrace
from millrace_client.commands import tune_options as options
from millrace_client.commands import tune_prompt, tune_sweep
from millrace_client.connection import api
from millrace_client.errors import ApiError, MillraceError
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
from millrace_client.tuning_feed import EVENT, Away, Update, follow
from millrace_client.tuning_samples import SAMPLE_COUNT
from millrace_client.tuning_view import event_line, method_words
from millrace_client.tuning_watch import Wish, print_json_line, watch_job
from millrace_client.uploads import file_id

_HELP = """Tune models that exist: on answers, preferences, rewards, a teacher, or plain text.

[bold]Start[/bold]

  millrace tune create --model demo --file pairs.jsonl --watch

  millrace tune create --help           every method, with examples

[bold]Follow[/bold]

  millrace tune watch ftjob-…           progress, losses, checkpoints; then before and after

  millrace tune metrics ftjob-… --csv   what was measured, for a spreadsheet

[bold]Afterwards[/bold]

  millrace chat ft:demo:…               talk to what was made
"""
_CREATE_HELP = """Start a fine-tuning job. It succeeds once the tuned model answers.

[bold]Examples[/bold]

  millrace tune create -M demo -f chats.jsonl --suffix docs --epochs 2 --watch

  millrace tune create -M demo -f pairs.jsonl --method dpo --beta 0.2

  millrace tune create -M demo -f tasks.jsonl --method reinforcement --grader grader.json

  millrace tune create -M demo -f text.jsonl --method pretraining --replay 0.1 --adapter none

  millrace tune create -M demo -f chats.jsonl --method distillation --teacher large

  millrace tune create -M demo -f chats.jsonl --quantize-base --rank 8 --target-modules q_proj

  millrace tune create -M demo -f chats.jsonl --sweep 8 --sweep-space space.json

  millrace tune create -M demo -f rows.jsonl --prompt pmpt-…@2 --completion reply

[bold]Exit status[/bold] with --watch: 0 when it succeeded, 1 when not, 130 when you left it.
"""
app = typer.Typer(help=_HELP)
_STEER, _LOOK = "Steer", "Look"
_COLUMNS: Columns = {
    "job": lambda j: j["id"],
    "base": lambda j: j["model"],
    "method": method_words,
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


class NoJob(MillraceError):
    def __init__(self) -> None:
        super().__init__("there are no fine-tuning jobs yet; see: millrace tune create --help")


@app.command(help=_CREATE_HELP)
def create(
    context: typer.Context,
    model: options.ModelOption,
    file: options.FileOption,
    validation_file: options.ValidationFileOption = "",
    prompt: tune_prompt.PromptOption = "",
    completion: tune_prompt.CompletionOption = "",
    method: options.MethodOption = None,
    method_file: options.MethodFileOption = None,
    loss: options.LossOption = None,
    grader: options.GraderOption = None,
    algorithm: options.AlgorithmOption = None,
    reward_model: options.RewardModelOption = None,
    teacher: options.TeacherOption = None,
    replay: options.ReplayOption = None,
    epochs: options.EpochsOption = None,
    batch: options.BatchOption = None,
    learning_rate_multiplier: options.RateOption = None,
    beta: options.BetaOption = None,
    max_tokens: options.MaxTokensOption = None,
    early_stopping: options.EarlyStoppingOption = None,
    packing: options.PackingOption = None,
    seed: options.SeedOption = None,
    adapter: options.AdapterOption = None,
    rank: options.RankOption = None,
    alpha: options.AlphaOption = None,
    dropout: options.DropoutOption = None,
    target_modules: options.TargetModulesOption = None,
    full_modules: options.FullModulesOption = None,
    virtual_tokens: options.VirtualTokensOption = None,
    quantize_base: options.QuantizeBaseOption = None,
    sweep: tune_sweep.SweepOption = None,
    sweep_space: tune_sweep.SweepSpaceOption = None,
    suffix: options.SuffixOption = "",
    request_id: options.RequestIdOption = "",
    follow_it: options.WatchOption = False,
    sample: options.SampleOption = None,
    samples: options.SamplesOption = SAMPLE_COUNT,
    sample_tokens: options.SampleTokensOption = 96,
    as_json: options.JsonOption = False,
) -> None:
    """Start a fine-tuning job."""
    how = options.method_of(context.params)  # before anything is sent
    tries = tune_sweep.sweep_of(sweep, sweep_space)
    template = tune_prompt.prompt_of(prompt, completion)
    with api(context) as client:
        body: Json = {"model": model, "method": how}
        body["training_file"] = file_id(client, file, purpose="fine-tune")
        if validation_file:
            body["validation_file"] = file_id(client, validation_file, purpose="fine-tune")
        if tries is not None:
            body["sweep"] = tries
        if template is not None:
            body["prompt"] = template
        if suffix:
            body["suffix"] = suffix
        if seed is not None:
            body["seed"] = seed
        job = _create(client, body, request_id)
        if not follow_it:
            show(job, as_json=as_json)
            if not as_json:
                console().print(f"follow it: millrace tune watch {job['id']}", markup=False)
            return
        watch_job(client, job["id"], Wish(as_json, sample or (), samples, sample_tokens))


def _create(client: Millrace, body: Json, request_id: str) -> Json:
    try:
        return client.tuning_jobs.create(body, request_id=request_id)
    except ApiError as error:
        raise options.in_options_words(error) from None


@app.command("watch")
def watch_(
    context: typer.Context,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="ftjob-…; the newest when left out.")
    ] = "",
    sample: options.SampleOption = None,
    samples: options.SamplesOption = SAMPLE_COUNT,
    sample_tokens: options.SampleTokensOption = 96,
    as_json: options.JsonOption = False,
) -> None:
    """Follow a job to its end, then ask its model and its base the same.

    The time left is of training, at a smoothed pace: what was a minute ago weighs half.
    Ctrl-C leaves the watch, not the job. Exit status 0 when it succeeded, 1 when not.
    """
    with api(context) as client:
        watch_job(
            client, job or _newest(client), Wish(as_json, sample or (), samples, sample_tokens)
        )


def _newest(client: Millrace) -> str:
    jobs = client.tuning_jobs.list(1)
    if not jobs:
        raise NoJob
    return str(jobs[0]["id"])


@app.command("list", rich_help_panel=_LOOK)
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List jobs, newest first."""
    with api(context) as client:
        found = client.tuning_jobs.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no fine-tuning jobs yet")


@app.command("show", rich_help_panel=_LOOK)
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
        console().print(event_line(event), markup=False)


@app.command(rich_help_panel=_LOOK)
def checkpoints(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """List a job's checkpoints, newest first, and the model that each can be asked as."""
    with api(context) as client:
        found = client.tuning_jobs.children(job, "checkpoints")
    show_list(found, _CHECKPOINT_COLUMNS, as_json=as_json, empty="there are no checkpoints yet")


@app.command(rich_help_panel=_LOOK)
def events(
    context: typer.Context,
    job: JobArgument,
    follow_it: Annotated[bool, typer.Option("--follow", help="Go on as they come.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="An object a line.")] = False,
) -> None:
    """Print what happened to a job, oldest first."""
    with api(context) as client:
        found = follow(client, job) if follow_it else _told(client, job)
        for event in found:
            if isinstance(event, Away) or event.get("object", EVENT) != EVENT:
                continue
            if as_json:
                print_json_line(event)
            else:
                console().print(event_line(event), markup=False)


def _told(client: Millrace, job: str) -> Iterator[Update]:
    yield from reversed(client.tuning_jobs.children(job, "events"))


@app.command(rich_help_panel=_LOOK)
def metrics(
    context: typer.Context,
    job: JobArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Newest rows.")] = 40,
    as_csv: Annotated[bool, typer.Option("--csv", help="All of them, as CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what was measured at each step; of a job that runs, what it has told so far."""
    with api(context) as client:
        rows = _measured(client, job)
    if as_csv:
        writer = csv.DictWriter(sys.stdout, _names(rows), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    columns: Columns = {name: lambda row, name=name: row.get(name) for name in _names(rows)}  # type: ignore[misc]
    shown = rows if as_json else rows[-limit:]
    show_list(shown, columns, as_json=as_json, empty="nothing was measured yet")


def _measured(client: Millrace, job: str) -> list[Json]:
    """Rows by step: of the result file when there is one, else of the job's events."""
    results = client.tuning_jobs.get(job)["result_files"]
    if results:
        whole = io.BytesIO()
        client.download(results[0], whole)
        return list(csv.DictReader(io.StringIO(whole.getvalue().decode())))
    rows: dict[int, Json] = {}
    for event in reversed(client.tuning_jobs.children(job, "events")):
        figures = event.get("data") or {}
        if "step" in figures:
            step = int(figures["step"])
            rows.setdefault(step, {}).update({**figures, "step": step})
    return [rows[step] for step in sorted(rows)]


def _names(rows: list[Json]) -> list[str]:
    """The columns, in the order in which they first appear."""
    return list(dict.fromkeys(["step", *(name for row in rows for name in row)]))


@app.command(rich_help_panel=_STEER)
def cancel(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job for good; its checkpoints stay."""
    _act(context, job, "cancel", as_json=as_json)


@app.command(rich_help_panel=_STEER)
def pause(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Stop a job after its newest checkpoint, to be resumed."""
    _act(context, job, "pause", as_json=as_json)


@app.command(rich_help_panel=_STEER)
def resume(context: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Take a paused job up from its newest checkpoint."""
    _act(context, job, "resume", as_json=as_json)


def _act(context: typer.Context, job: str, verb: str, *, as_json: bool) -> None:
    with api(context) as client:
        show(client.tuning_jobs.act(job, verb), as_json=as_json)
