"""``millrace datasets``: what a model learns from."""

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
    created,
    show,
    show_list,
    state,
)
from millrace_client.uploads import upload
from millrace_client.watching import metrics, watch

app = typer.Typer(help="Build datasets from files or from this Python's own library.")
_COLUMNS: Columns = {
    "dataset": lambda d: d["id"],
    "name": lambda d: d.get("display_name"),
    "state": lambda d: state(d["status"]),
    "progress": lambda d: text.progress(d.get("progress")),
    "tokens": lambda d: text.number(d.get("train_tokens") or None),
    "held out": lambda d: text.number(d.get("heldout_tokens") or None),
    "created": created,
}
DatasetArgument = Annotated[str, typer.Argument(metavar="DATASET", help="dataset-…")]


class NothingToRead(MillraceError):
    def __init__(self) -> None:
        super().__init__("say what to read: files, or --python-stdlib")


@app.command()
def create(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Text to upload.")
    ] = None,
    python_stdlib: Annotated[
        bool, typer.Option("--python-stdlib", help="The source of the mesh's own Python.")
    ] = False,
    examples: Annotated[
        bool, typer.Option("--examples", help="The files hold examples to tune on; keep them.")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="For people.")] = "",
    vocabulary_size: Annotated[int | None, typer.Option("--vocabulary-size")] = None,
    heldout_fraction: Annotated[float | None, typer.Option("--heldout-fraction")] = None,
    maximum_bytes: Annotated[int | None, typer.Option("--maximum-bytes")] = None,
    request_id: Annotated[str, typer.Option("--request-id", help="Same id, same dataset.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is built.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset: cleaned, without duplicates, tokenised, with a held-out part.

    [bold]Examples[/bold]

      millrace datasets create --python-stdlib --wait

      millrace datasets create corpus/*.txt --name books --vocabulary-size 8192

      millrace datasets create shard-*.parquet --examples --wait
    """
    recipe = {
        "vocabulary_size": vocabulary_size,
        "heldout_fraction": heldout_fraction,
        "maximum_bytes": maximum_bytes,
    }
    with api(context) as client:
        body: Json = {"source": _source(client, files or [], python_stdlib, examples)}
        body["display_name"] = name
        given = {key: value for key, value in recipe.items() if value is not None}
        if given or not examples:
            body["recipe"] = given
        dataset = client.datasets.create(body, request_id=request_id)
        if wait:
            watch(lambda: client.datasets.get(dataset["id"]), metrics)
            dataset = client.datasets.get(dataset["id"])
    show(dataset, as_json=as_json)


@app.command("list")
def list_(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List datasets, newest first."""
    with api(context) as client:
        found = client.datasets.list(limit)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no datasets yet")


@app.command("show")
def show_(context: typer.Context, dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Show one dataset: what was read, dropped and kept."""
    with api(context) as client:
        show(client.datasets.get(dataset), as_json=as_json)


@app.command()
def cancel(context: typer.Context, dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Stop building a dataset."""
    with api(context) as client:
        show(client.datasets.act(dataset, "cancel"), as_json=as_json)


def _source(client: Millrace, files: list[Path], python_stdlib: bool, examples: bool) -> Json:
    if bool(files) == python_stdlib or (examples and python_stdlib):
        raise NothingToRead
    if examples:
        ids = [upload(client, path, purpose="fine-tune")["id"] for path in files]
        return {"type": "examples", "files": ids}
    if python_stdlib:
        return {"type": "python_standard_library"}
    uploaded = [upload(client, path, purpose="user_data")["id"] for path in files]
    return {"type": "files", "files": uploaded}
