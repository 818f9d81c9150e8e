"""Committed directories as MLflow's clients see them: folders to list, files to download."""

import asyncio
import json
from typing import Any

from fastapi import Response
from fastapi.responses import FileResponse

from millrace.lifecycle.v1 import lifecycle_pb2
from millrace_gateway.rest.caller import Caller, no_such
from millrace_runtime import manifest
from millrace_runtime.content import ContentOutsideRoot
from millrace_runtime.errors import Unavailable

BYTES = "application/octet-stream"

Files = dict[str, tuple[str, int]]
"""Path within a directory -> digest, and size in bytes."""


async def files_of(caller: Caller, content: lifecycle_pb2.Content) -> Files:
    """What a committed directory holds, by its manifest, which is verified.

    Raises:
        Unavailable: the gateway cannot read it.
    """
    try:
        return await asyncio.to_thread(_read, caller, content)
    except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
        raise _unreadable(error) from error


async def file_of(caller: Caller, content: lifecycle_pb2.Content, name: str) -> Response:
    """One of its files, verified before the first byte is sent.

    Raises:
        NotFound: it has none of that name.
        Unavailable: the gateway cannot read it.
    """
    files = await files_of(caller, content)
    if name not in files:  # so that no name leads out of the directory
        raise no_such("artifact", name)
    uri = f"{content.uri}/{name}"
    try:
        path = await asyncio.to_thread(caller.gateway.content.file, uri, files[name][0])
    except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
        raise _unreadable(error) from error
    return FileResponse(path, media_type=BYTES)


def in_folder(files: Files, folder: str) -> list[dict[str, Any]]:
    """The files and folders in ``folder``; their names alone."""
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    found: dict[str, dict[str, Any]] = {}
    for path, (_, size) in sorted(files.items()):
        if path.startswith(prefix):
            name, _, deeper = path.removeprefix(prefix).partition("/")
            found[name] = folder_entry(name) if deeper else file_entry(name, size)
    return list(found.values())


def folder_entry(name: str) -> dict[str, Any]:
    return {"path": name, "is_dir": True}


def file_entry(name: str, size_bytes: int) -> dict[str, Any]:
    return {"path": name, "is_dir": False, "file_size": size_bytes}


def _read(caller: Caller, content: lifecycle_pb2.Content) -> Files:
    # A directory's digest is its manifest's own sha256.
    path = caller.gateway.content.file(f"{content.uri}/{manifest.MANIFEST_NAME}", content.digest)
    entries = json.loads(path.read_bytes())["files"]
    return {entry["path"]: (entry["sha256"], int(entry["size_bytes"])) for entry in entries}


def _unreadable(error: Exception) -> Unavailable:
    return Unavailable(
        "the gateway cannot read the model's artifact; tell the operator that it needs the "
        f"mesh's data root ({type(error).__name__})",
        reason="ARTIFACT_UNREADABLE",
    )
