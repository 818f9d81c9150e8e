"""Uploading a file from this machine: a small one at once, a large one in parts.

A large file's upload is named by its content. So one that broke off is taken up where it was
when the same file is uploaded again, for as long as the gateway keeps it (an hour).
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from millrace_client.api import REQUEST_ID_HEADER, Json, Millrace
from millrace_client.dataset_folder import as_parquet
from millrace_client.output import error_console

PART_BYTES = 16 * 2**20
_EXAMPLES = "fine-tune"
# A large file takes its time to be sent and checked.
_TIMEOUT_SECONDS = 600.0
_MIME_TYPE = "application/octet-stream"

Advance = Callable[[int], None]
"""Told how many bytes more are there."""


@dataclass(frozen=True)
class _Wish:
    """What is to be uploaded, and its digests."""

    path: Path
    purpose: str
    expire_seconds: int | None
    sha256: str
    md5: str

    @property
    def request_id(self) -> str:
        said = (self.path.name, self.purpose, self.expire_seconds, self.sha256)
        return f"upload-{hashlib.sha256(repr(said).encode()).hexdigest()}"

    def body(self) -> Json:
        body: Json = {
            "bytes": self.path.stat().st_size,
            "filename": self.path.name,
            "mime_type": _MIME_TYPE,
            "purpose": self.purpose,
        }
        return {**body, **_expires_after(self.expire_seconds)}


def file_id(client: Millrace, given: str, purpose: str) -> str:
    """An id as it is, also a dataset's where it may stand for a file; a path is uploaded first.

    Raises:
        BadParameter: it is neither.
    """
    path = Path(given)
    ids = ("file-", "dataset-") if purpose == _EXAMPLES else ("file-",)
    if given.startswith(ids) and not path.exists():
        return given
    if not path.is_file() and not (path.is_dir() and purpose == _EXAMPLES):
        raise typer.BadParameter(f"{given!r} is neither a file here nor the id of an upload")
    return str(upload(client, path, purpose)["id"])


def upload(
    client: Millrace,
    path: Path,
    purpose: str,
    *,
    expire_seconds: int | None = None,
    part_bytes: int = PART_BYTES,
) -> Json:
    """Upload one file; ``purpose`` as the OpenAI API has it. A large one shows how far it is.

    The same large file uploaded twice is one file. A folder of Hugging Face's ``datasets`` is
    sent as parquet.

    Raises:
        NotADataset
    """
    if path.is_dir():
        with as_parquet(path) as file:
            return upload(
                client, file, purpose, expire_seconds=expire_seconds, part_bytes=part_bytes
            )
    if path.stat().st_size <= part_bytes:
        return _upload_at_once(client, path, purpose, expire_seconds)
    with _bar() as bar:
        wish = _read(path, purpose, expire_seconds, bar)
        task = bar.add_task(f"sending {path.name}", total=path.stat().st_size)
        return _upload_in_parts(client, wish, part_bytes, lambda size: bar.advance(task, size))


def _upload_at_once(client: Millrace, path: Path, purpose: str, expire_seconds: int | None) -> Json:
    expires = _expires_after(expire_seconds).get("expires_after", {})
    brackets = {f"expires_after[{name}]": str(value) for name, value in expires.items()}
    with path.open("rb") as file:
        return client.request(
            "POST",
            "/v1/files",
            files={"file": (path.name, file)},
            data={"purpose": purpose, **brackets},
            timeout=_TIMEOUT_SECONDS,
        )


def _upload_in_parts(client: Millrace, wish: _Wish, part_bytes: int, advance: Advance) -> Json:
    begun = client.uploads.create(wish.body(), request_id=wish.request_id)
    if begun["status"] == "completed" and begun["file"] is None:  # it has expired since
        begun = client.uploads.create(wish.body(), request_id=uuid.uuid4().hex)
    if begun["status"] == "completed":
        advance(begun["bytes"])
        return _file_of(begun)
    there = _parts_there(client, begun["id"])
    part_ids = []
    for index, chunk in enumerate(_chunks(wish.path, part_bytes)):
        same = there.get(hashlib.sha256(chunk).hexdigest())
        part_ids.append(same.pop() if same else _send(client, begun["id"], index, chunk))
        advance(len(chunk))
    body = {"part_ids": part_ids, "md5": wish.md5}
    path = f"/v1/uploads/{begun['id']}/complete"
    return _file_of(client.request("POST", path, json=body, timeout=_TIMEOUT_SECONDS))


def _parts_there(client: Millrace, upload_id: str) -> dict[str, list[str]]:
    """Ids of the parts that need not be sent again, by the SHA-256 of their bytes."""
    found: dict[str, list[str]] = {}
    for part in client.uploads.children(upload_id, "parts"):
        found.setdefault(part["digest"].removeprefix("sha256:"), []).append(part["id"])
    return found


def _send(client: Millrace, upload_id: str, index: int, chunk: bytes) -> str:
    part = client.request(
        "POST",
        f"/v1/uploads/{upload_id}/parts",
        files={"data": (f"part-{index}", chunk)},
        headers={REQUEST_ID_HEADER: f"{upload_id}-{index}"},
        timeout=_TIMEOUT_SECONDS,
    )
    return str(part["id"])


def _file_of(upload: Json) -> Json:
    file: Json = upload["file"]
    return file


def _read(path: Path, purpose: str, expire_seconds: int | None, bar: Progress) -> _Wish:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    task = bar.add_task(f"reading {path.name}", total=path.stat().st_size)
    for chunk in _chunks(path, 2**20):
        sha256.update(chunk)
        md5.update(chunk)
        bar.advance(task, len(chunk))
    return _Wish(path, purpose, expire_seconds, sha256.hexdigest(), md5.hexdigest())


def _chunks(path: Path, size_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size_bytes):
            yield chunk


def _expires_after(seconds: int | None) -> Json:
    if seconds is None:
        return {}
    return {"expires_after": {"anchor": "created_at", "seconds": seconds}}


def _bar() -> Progress:
    """On standard error: what a command prints stays a program's to read."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, TransferSpeedColumn(), console=error_console())
