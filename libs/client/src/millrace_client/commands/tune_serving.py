"""``millrace tune-serving``: search for the settings that answer most requests in time."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from millrace_client import output
from millrace_client.api import Json, Millrace
from millrace_client.connection import api
from millrace_client.errors import MillraceError
from millrace_client.output import Columns, JsonOption
from millrace_client.serving_plot import plot

_LEFT = 130  # as a shell says of a program that Ctrl-C ended

_COLUMNS: Columns = {
    "trial": lambda t: t["number"],
    "kind": lambda t: t["kind"],
    "instances": lambda t: _setting(t, "instance_count"),
    "batch": lambda t: _setting(t, "max_batch_size"),
    "threads": lambda t: _setting(t, "threads"),
    "cache": lambda t: _setting(t, "cache_gibibytes", " GiB"),
    "single stream p90": lambda t: _milliseconds(t["single_stream_seconds_p90"]),
    "offline": lambda t: _figure(t["offline_tokens_per_second"], "tok/s"),
    "server": lambda t: _figure(t["server_requests_per_second"], "req/s"),
    "first token p99": lambda t: _milliseconds(t["server_first_token_seconds_p99"]),
    "": lambda t: t["reason"] or " ",
}
SecondsOption = Annotated[float, typer.Option("--seconds", min=0.5, help="Of each measurement.")]
MostOption = Annotated[int | None, typer.Option(min=1, help="At most so many are tried.")]


def tune_serving(
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
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw the trials into this file (SVG).")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all figures into this file (JSON).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the engine settings that answer most requests in time, and write them to the deployment.

    Each candidate is loaded beside the model that serves, where no request reaches it, and is asked
    as the recent traffic asked. The present settings stay unless one is clearly better. Ctrl-C
    changes nothing.

    [bold]Example[/bold]

      millrace tune-serving demo --latency-target-seconds 0.5 --dry-run --plot trials.svg
    """
    if (prompt_tokens is None) != (answer_tokens is None):
        raise typer.BadParameter("give --prompt-tokens and --answer-tokens together, or neither")
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
        found = _search(client, model, body, trials)
    if plot_file is not None:
        winner = found["result"]["winner"]
        plot_file.write_text(plot(model, found["trials"], winner, latency_target_seconds))
    if output_file is not None:
        output_file.write_text(json.dumps(found, indent=2) + "\n")
    if as_json:
        output.print_json(found)
    else:
        _show(found, dry_run)


def _search(client: Millrace, model: str, body: Json, trials: int) -> Json:
    """All that the search said.

    Raises:
        typer.Exit: the user left.
    """
    deployment = _deployment(client, model)
    found: Json = {"model": model, "asked": body, "traffic": {}, "trials": [], "result": {}}
    notes = output.error_console()
    try:
        with (
            notes.status("beginning") as status,
            closing(client.tune_serving(deployment, body)) as news,
        ):
            for kind, document in news:
                _take(found, kind, document, status, trials)
    except KeyboardInterrupt:
        notes.print("\nended; nothing was changed", markup=False)
        raise typer.Exit(_LEFT) from None
    if not found["result"]:
        raise MillraceError("the search broke off; nothing was changed")
    return found


def _take(found: Json, kind: str, document: Json, status: Status, trials: int) -> None:
    if kind == "phase":
        number = len(found["trials"])
        status.update(f"trial {number} of about {trials}: {document['phase']}")
    elif kind == "trial":
        found["trials"].append(document)
        _say_trial(status.console, document)
    else:
        found[kind] = document
        if kind == "traffic":
            status.console.print(_traffic(document), markup=False)


def _say_trial(notes: Console, trial: Json) -> None:
    rate = _figure(trial["server_requests_per_second"], "req/s in time")
    notes.print(
        f"trial {trial['number']} ({trial['kind']}): {trial['reason'] or rate}", markup=False
    )


def _traffic(source: Json) -> str:
    if source["source"] == "recent":
        rate = source["requests_per_second"]
        return f"shaped like the last {source['requests']} requests ({rate:.3g}/s)"
    if source["source"] == "given":
        return "shaped as asked"
    return "too little traffic lately: 64 tokens asked, 32 answered"


def _deployment(client: Millrace, model: str) -> str:
    """
    Raises:
        MillraceError: the model has none.
    """
    for found in client.deployments.list():
        if found["model"] == model:
            return str(found["id"])
    raise MillraceError(f"model {model!r} has no deployment; millrace deployments list")


def _show(found: Json, is_dry_run: bool) -> None:
    out, result = output.console(), found["result"]
    out.print(output.table(found["trials"], _COLUMNS))
    winner = found["trials"][result["winner"]]
    if not result["is_better"]:
        out.print(f"nothing changed: {result['reason']}", markup=False)
        return
    settings = {k: v for k, v in winner["serving"].items() if k != "queue_policy"}
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    out.print(f"best: trial {winner['number']}: {words}: {result['reason']}", markup=False)
    if policy := result["queue_policy"]:
        out.print(
            f"a queue that fits: --max-queue-size {policy['max_queue_size']} "
            f"--queue-timeout-seconds {policy['default_timeout_seconds']:g}",
            markup=False,
        )
    if result["is_written"]:
        out.print(f"written to {result['deployment']['id']}", markup=False)
    elif is_dry_run:
        out.print("not written: --dry-run", markup=False)


def _setting(trial: Json, name: str, unit: str = "") -> str:
    value = trial["serving"][name]
    return "default" if value is None else f"{value}{unit}"


def _figure(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g} {unit}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.3g} ms"
