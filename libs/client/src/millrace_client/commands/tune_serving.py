"""``millrace tune-serving``: search for the settings that answer most requests in time."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from millrace_client import output
from millrace_client.api import Json, Millrace
from millrace_client.connection import api
from millrace_client.errors import MillraceError
from millrace_client.output import Columns, JsonOption, LimitOption, created, state
from millrace_client.serving_view import show_report, traffic_line
from millrace_client.serving_watch import watch_tuning

_START = "start"


class _StartsByDefault(TyperGroup):
    """``tune-serving demo`` is ``tune-serving start demo``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_START, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_StartsByDefault,
    help="Find the engine settings that answer most requests in time: millrace tune-serving MODEL.",
)
_COLUMNS: Columns = {
    "search": lambda t: t["id"],
    "model": lambda t: t["model"],
    "state": lambda t: state(t["status"]),
    "looks": lambda t: f"{t['progress']['completed']}/{t['progress']['total']}",
    "outcome": lambda t: _outcome(t),
    "created": created,
}
TuningArgument = Annotated[str, typer.Argument(metavar="SEARCH", help="tuning-…")]
SecondsOption = Annotated[float, typer.Option("--seconds", min=0.5, help="Of each measurement.")]
MostOption = Annotated[int | None, typer.Option(min=1, help="At most so many are tried.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Draw the trials into this file (SVG).")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write all figures into this file (JSON).")
]


@app.command(_START)
def start(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of a model that serves.")],
    latency_target_seconds: Annotated[
        float, typer.Option(min=0.001, help="To the first token, for 99 of 100 requests.")
    ] = 1.0,
    token_target_seconds: Annotated[
        float, typer.Option(min=0.0001, help="Each further token, for 99 of 100 requests.")
    ] = 0.2,
    trials: Annotated[int, typer.Option(min=1, max=100, help="Candidates to try.")] = 8,
    seconds: SecondsOption = 4.0,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recent traffic's.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recent traffic's.")
    ] = None,
    max_instance_count: MostOption = None,
    max_batch_size: MostOption = None,
    max_threads: Annotated[
        int | None, typer.Option(min=1, help="Of all engines together, at most.")
    ] = None,
    max_cache_gibibytes: Annotated[
        int | None, typer.Option(min=1, help="Of all engines together, at most.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same one tries the same.")] = 0,
    with_queue: Annotated[
        bool, typer.Option("--with-queue", help="Write the queue policy that fits, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for the end; print its id.")
    ] = False,
    plot_file: PlotOption = None,
    output_file: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the engine settings that answer most requests in time, and write them to the deployment.

    Each candidate is loaded beside the model that serves, where no request reaches it, and is asked
    as the recent traffic asked. The present settings stay unless one is clearly better. Ctrl-C
    leaves the search running.

    [bold]Example[/bold]

      millrace tune-serving demo --latency-target-seconds 0.5 --dry-run --plot trials.svg
    """
    if (prompt_tokens is None) != (answer_tokens is None):
        raise typer.BadParameter("give --prompt-tokens and --answer-tokens together, or neither")
    if detach and (plot_file or output_file):
        raise typer.BadParameter("--plot and --output need the end: use them with report")
    fields = {
        "latency_target_seconds": latency_target_seconds,
        "token_target_seconds": token_target_seconds,
        "trials": trials,
        "seconds": seconds,
        "seed": seed,
        "max_instance_count": max_instance_count,
        "max_batch_size": max_batch_size,
        "max_threads": max_threads,
        "max_cache_gibibytes": max_cache_gibibytes,
        "with_queue": with_queue,
        "dry_run": dry_run,
    }
    body: Json = {key: value for key, value in fields.items() if value is not None}
    if prompt_tokens is not None:
        body["traffic"] = [{"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}]
    with api(context) as client:
        path = f"/v1/deployments/{_deployment(client, model)}/serving_tunings"
        made = client.request("POST", path, json=body)
        if detach:
            _say_detached(made, as_json)
            return
        output.error_console().print(traffic_line(made["traffic"]), markup=False)
        watch_tuning(client, made["id"])
        _report(client, made["id"], plot_file, output_file, as_json)


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-M", help="Of this model alone.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List searches, newest first."""
    with api(context) as client:
        filters = {"deployment": _deployment(client, model)} if model else {}
        found = client.serving_tunings.list(limit, **filters)
    output.show_list(found, _COLUMNS, as_json=as_json, empty="no settings were searched for yet")


@app.command("show")
def show_(context: typer.Context, tuning: TuningArgument, as_json: JsonOption = False) -> None:
    """Show one search: what was asked, and how far it has come."""
    with api(context) as client:
        output.show(client.serving_tunings.get(tuning), as_json=as_json)


@app.command("watch")
def watch_(
    context: typer.Context,
    tuning: TuningArgument,
    plot_file: PlotOption = None,
    output_file: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a search to its end. Exit status 1 if it fails or is cancelled."""
    with api(context) as client:
        watch_tuning(client, tuning)
        _report(client, tuning, plot_file, output_file, as_json)


@app.command("report")
def report_(
    context: typer.Context,
    tuning: TuningArgument,
    plot_file: PlotOption = None,
    output_file: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what was measured, single stream, offline and server, and how sure that is."""
    with api(context) as client:
        _report(client, tuning, plot_file, output_file, as_json)


@app.command("cancel")
def cancel(context: typer.Context, tuning: TuningArgument, as_json: JsonOption = False) -> None:
    """End a search; the deployment stays as it is."""
    with api(context) as client:
        found = client.serving_tunings.act(tuning, "cancel")
    if as_json:
        output.print_json(found)
    else:
        output.console().print(found["id"], state(found["status"]))


def _report(
    client: Millrace, tuning: str, plot_file: Path | None, output_file: Path | None, as_json: bool
) -> None:
    found = client.request("GET", f"/v1/serving_tunings/{tuning}/report")
    document = {**found.pop("serving_tuning"), **{k: v for k, v in found.items() if k != "object"}}
    if plot_file is not None:
        plot_file.write_bytes(client.serving_tuning_plot(tuning))
    if output_file is not None:
        output_file.write_text(json.dumps(document, indent=2) + "\n")
    if as_json:
        output.print_json(document)
    else:
        show_report(document)


def _say_detached(made: Json, as_json: bool) -> None:
    if as_json:
        output.print_json(made)
        return
    out = output.console()
    out.print(made["id"], state(made["status"]))
    out.print(
        f"follow it: millrace tune-serving watch {made['id']}\n"
        f"end it:    millrace tune-serving cancel {made['id']}",
        markup=False,
    )


def _deployment(client: Millrace, model: str) -> str:
    """
    Raises:
        MillraceError: the model has none.
    """
    for found in client.deployments.list():
        if found["model"] == model:
            return str(found["id"])
    raise MillraceError(f"model {model!r} has no deployment; millrace deployments list")


def _outcome(tuning: Json) -> str:
    result, error = tuning["result"], tuning["error"]
    if result is None:
        return str(error["message"] if error else tuning["progress"]["phase"])
    if not result["is_better"]:
        return "no winner: the present settings stay"
    return f"trial {result['winner']}{', written' if result['is_written'] else ', not written'}"
