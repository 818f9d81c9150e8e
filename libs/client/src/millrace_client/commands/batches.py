"""``millrace batches``: many requests in one file, answered when there is room."""

import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from millrace_client import text
from millrace_client.api import Json, Millrace
from millrace_client.connection import api
from millrace_client.errors import MillraceError
from millrace_client.output import (
    Columns,
    JsonOption,
    LimitOption,
    console,
    created,
    print_json,
    show,
    show_list,
    state,
)
from millrace_client.uploads import file_id
from millrace_client.watching import watch

app = typer.Typer(help="Have a file of requests answered when there is room, within 24 hours.")
_ENDED = ("completed", "failed", "expired", "cancelled")
_COLUMNS: Columns = {
    "batch": lambda b: b["id"],
    "endpoint": lambda b: b["endpoint"],
    "model": lambda b: b.get("model"),
    "state": lambda b: state(b["status"]),
    "progress": lambda b: _progress(b),
    "failed": lambda b: f"{b['request_counts']['failed']:,}",
    "created": created,
}
BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="batch-…")]


class Endpoint(StrEnum):
    """What a batch's lines may ask."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"


class NotEnded(MillraceError):
    def __init__(self, batch: Json) -> None:
        super().__init__(
            f"{batch['id']} is {batch['status']}: its results come when it has ended; "
            f"see: millrace batches watch {batch['id']}"
        )


class NoResults(MillraceError):
    def __init__(self, batch: Json) -> None:
        super().__init__(
            f"{batch['id']} is {batch['status']} and has no results; "
            f"see: millrace batches show {batch['id']}"
        )


@app.command()
def create(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSONL of requests: a path, or file-… uploaded.")
    ],
    endpoint: Annotated[Endpoint, typer.Option("--endpoint", "-e", help="Asked by every line.")],
    completion_window: Annotated[
        str, typer.Option("--completion-window", help="When it ends at the latest.")
    ] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="Again for more.")
    ] = None,
    request_id: Annotated[str, typer.Option("--request-id", help="Same id, same batch.")] = "",
    follow: Annotated[bool, typer.Option("--watch", help="Return when it has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have each line of a file answered, at low priority and with your key's limits.

    [bold]Example[/bold]

      millrace batches create requests.jsonl --endpoint /v1/chat/completions --watch
    """
    given = _metadata(metadata or [])
    with api(context) as client:
        body: Json = {
            "input_file_id": file_id(client, file, purpose="batch"),
            "endpoint": endpoint.value,
            "completion_window": completion_window,
            **({"metadata": given} if given else {}),
        }
        batch = client.batches.create(body, request_id=request_id)
        if follow:
            _follow(client, batch["id"])
            batch = client.batches.get(batch["id"])
    show(batch, as_json=as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List batches, newest first."""
    with api(context) as client:
        found = client.batches.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no batches yet")


@app.command("show")
def show_(context: typer.Context, batch: BatchArgument, as_json: JsonOption = False) -> None:
    """Show one batch: how far it is, what it used, what was wrong with its input."""
    with api(context) as client:
        show(client.batches.get(batch), as_json=as_json)


@app.command("watch")
def watch_(context: typer.Context, batch: BatchArgument) -> None:
    """Follow a batch to its end. Exit status 1 if it fails or its time runs out."""
    with api(context) as client:
        _follow(client, batch)


@app.command()
def cancel(context: typer.Context, batch: BatchArgument, as_json: JsonOption = False) -> None:
    """Ask no more lines; what was answered is in the results."""
    with api(context) as client:
        show(client.batches.act(batch, "cancel"), as_json=as_json)


@app.command()
def results(
    context: typer.Context,
    batch: BatchArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", dir_okay=False, help="BATCH_output.jsonl when left out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download the answers, and beside them what could not be answered, where there is that.

    Lines with errors go to a file of the same name with "errors" in it.

    [bold]Example[/bold]

      millrace batches results batch-… --output answers.jsonl
    """
    if output is not None and not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")
    with api(context) as client:
        found = client.batches.get(batch)
        if found["status"] not in _ENDED:
            raise NotEnded(found)
        targets = _targets(found, output)
        if not targets:
            raise NoResults(found)
        for made, path in targets.items():
            _save(client, made, path)
    saved = [{"id": made, "path": str(path)} for made, path in targets.items()]
    if as_json:
        print_json(saved)
        return
    for path in targets.values():
        console().print(f"{path}  {text.size(path.stat().st_size)}", markup=False)


def _targets(batch: Json, output: Path | None) -> dict[str, Path]:
    """Where each file of a batch is to lie, by the file's id."""
    answers = output or Path(f"{batch['id']}_output.jsonl")
    mistakes = Path(f"{batch['id']}_errors.jsonl")
    if output is not None:
        mistakes = output.with_name(f"{output.stem}.errors{output.suffix}")
    found = {batch["output_file_id"]: answers, batch["error_file_id"]: mistakes}
    return {made: path for made, path in found.items() if made is not None}


def _save(client: Millrace, file: str, path: Path) -> None:
    """Download a file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as target:
            client.download(file, target)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _follow(client: Millrace, batch: str) -> None:
    latest: Json = {}

    def fetch() -> Json:
        latest.update(client.batches.get(batch))
        return latest

    def news() -> Iterator[str]:
        if latest["output_file_id"] or latest["error_file_id"]:
            counts = latest["request_counts"]
            yield (
                f"{counts['completed']:,} answered, {counts['total'] - counts['completed']:,} not; "
                f"see: millrace batches results {batch}"
            )

    watch(fetch, _describe, news, _ENDED)


def _describe(batch: Json) -> str:
    """``in_progress  ━━━━────  lines 40/100 (40%)  2 failed  about 1 min 05 s left``."""
    counts = batch["request_counts"]
    if not counts["total"]:
        return str(batch["status"])
    done = counts["completed"] + counts["failed"]
    parts = [batch["status"], text.bar(done, counts["total"]), _progress(batch)]
    if counts["failed"]:
        parts.append(f"{counts['failed']:,} failed")
    seconds = _seconds_left(batch, done, counts["total"])
    if seconds is not None:
        parts.append(f"about {text.duration(seconds)} left")
    return "  ".join(parts)


def _seconds_left(batch: Json, done: int, total: int) -> float | None:
    """At the pace so far; None when there is none yet, or nothing more to do."""
    started: int | None = batch["in_progress_at"]
    if batch["status"] != "in_progress" or not done or started is None:
        return None
    return max(0.0, time.time() - started) / done * (total - done)


def _progress(batch: Json) -> str:
    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    return text.progress({"phase": "lines", "completed": done, "total": counts["total"]})


def _metadata(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        key, separator, value = one.partition("=")
        if not (key and separator):
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE", param_hint="--metadata")
        found[key] = value
    return found
