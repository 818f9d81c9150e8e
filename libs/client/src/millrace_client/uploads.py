"""Uploading a file from this machine."""

from pathlib import Path

from millrace_client.api import Json, Millrace

# A large file takes its time to be sent and checked.
_TIMEOUT_SECONDS = 600.0


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
