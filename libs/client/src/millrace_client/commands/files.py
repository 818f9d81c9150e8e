"""``millrace files``: what was uploaded, and what jobs and batches wrote."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from millrace_client import text
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
)
from millrace_client.uploads import upload as send

app = typer.Typer(help="Upload files, look at them, fetch and delete them.")
_COLUMNS: Columns = {
    "file": lambda f: f["id"],
    "name": lambda f: f["filename"],
    "purpose": lambda f: f["purpose"],
    "size": lambda f: text.size(f["bytes"]),
    "examples": lambda f: text.number(f.get("example_count") or None),
    "created": created,
}
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="file-…")]


class Purpose(StrEnum):
    """What a client may upload for."""

    FINE_TUNE = "fine-tune"
    BATCH = "batch"
    USER_DATA = "user_data"


class Exists(MillraceError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already; say another with --output, or --force")


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(exists=True, help="A file here; of examples, also a datasets folder.")
    ],
    purpose: Annotated[Purpose, typer.Option("--purpose", "-p", help="What it is for.")],
    expires_after: Annotated[
        int | None,
        typer.Option(
            "--expires-after", min=3600, max=2_592_000, help="Seconds; else it stays for ever."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a file. A large one goes in parts, and is taken up again where it broke off.

    [bold]Example[/bold]

      millrace files upload pairs.jsonl --purpose fine-tune

      millrace files upload saved/train --purpose fine-tune     of Dataset.save_to_disk
    """
    if path.is_dir() and purpose is not Purpose.FINE_TUNE:
        raise typer.BadParameter(
            "a folder holds examples: --purpose fine-tune", param_hint="--purpose"
        )
    with api(context) as client:
        found = send(client, path, purpose.value, expire_seconds=expires_after)
    show(found, as_json=as_json)


@app.command("list")
def list_(
    context: typer.Context,
    purpose: Annotated[str, typer.Option("--purpose", "-p", help="Only of this one.")] = "",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """List files, newest first."""
    filters = {"purpose": purpose} if purpose else {}
    with api(context) as client:
        found = client.files.list(limit, **filters)
    show_list(found, _COLUMNS, as_json=as_json, empty="there are no files yet")


@app.command("show")
def show_(context: typer.Context, file: FileArgument, as_json: JsonOption = False) -> None:
    """Show one file."""
    with api(context) as client:
        show(client.files.get(file), as_json=as_json)


@app.command()
def download(
    context: typer.Context,
    file: FileArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; default: its own name, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Fetch a file's bytes, whole or not at all."""
    with api(context) as client:
        # Its name may be anything, somebody's path too: the last part alone is used.
        path = output or Path(Path(client.files.get(file)["filename"]).name or file)
        if path.exists() and not force:
            raise Exists(path)
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("wb") as target:
                client.download(file, target)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    console().print(str(path), markup=False)


@app.command()
def delete(context: typer.Context, file: FileArgument, as_json: JsonOption = False) -> None:
    """Delete a file for good."""
    with api(context) as client:
        found = client.files.delete(file)
    if as_json:
        print_json(found)
    else:
        console().print(f"{found['id']} was deleted", markup=False)
