"""Uploading a file from this machine."""

from pathlib import Path

import typer

from millrace_client.api import Json, Millrace

# A large file takes its time to be sent and checked.
_TIMEOUT_SECONDS = 600.0


def file_id(client: Millrace, given: str, purpose: str) -> str:
    """An id as it is; a path is uploaded first.

    Raises:
        BadParameter: it is neither.
    """
    path = Path(given)
    if given.startswith("file-") and not path.exists():
        return given
    if not path.is_file():
        raise typer.BadParameter(f"{given!r} is neither a file here nor the id of an upload")
    return str(upload(client, path, purpose)["id"])


def upload(client: Millrace, path: Path, purpose: str) -> Json:
    """Upload one file; ``purpose`` as the OpenAI API has it."""
    with path.open("rb") as file:
        return client.request(
            "POST",
            "/v1/files",
            files={"file": (path.name, file)},
            data={"purpose": purpose},
            timeout=_TIMEOUT_SECONDS,
        )
