"""``/mlflow/…/mlflow-artifacts``: files of runs and of versions, to list and to download.

``runs/<run id>/…`` is what a run has logged, ``models/<model>/<version>/…`` what a version is.
"""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from millrace.registry.v1 import service_pb2 as pb
from millrace_gateway.rest.caller import Caller, CallerOf, no_such
from millrace_gateway.rest.mlflow_models import get_version
from millrace_gateway.rest.routing import router
from millrace_runtime import manifest
from millrace_runtime.content import ContentOutsideRoot
from millrace_runtime.errors import FailedPrecondition, Unavailable

ROUTER = router("mlflow", "/mlflow/api/2.0/mlflow-artifacts/artifacts")

_Files = dict[str, tuple[str, int]]
"""Path within an artifact -> digest, and size in bytes."""


@ROUTER.get("")
async def list_artifacts(caller: CallerOf, path: str = "") -> dict[str, Any]:
    """The files and folders in a folder."""
    kind, name, rest = _parts(path)
    if kind == "runs":
        tracking = caller.gateway.tracking
        found = await asyncio.to_thread(tracking.artifacts, caller.tenant, name, rest)
        return {"files": found}
    number, _, folder = rest.partition("/")
    version = await get_version(caller, name, number)
    return {"files": _in_folder(await _files(caller, version), folder)}


@ROUTER.get("/{path:path}", include_in_schema=False)  # bytes: no schema says them
async def download_artifact(path: str, caller: CallerOf) -> Response:
    kind, name, rest = _parts(path)
    if kind == "models":
        number, _, file = rest.partition("/")
        return await _file_of_version(caller, await get_version(caller, name, number), file)
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mlflow-artifact-"))
    forget = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    try:
        tracking = caller.gateway.tracking
        found = await asyncio.to_thread(tracking.download, caller.tenant, name, rest, folder)
    except BaseException:
        await forget()
        raise
    return FileResponse(found, media_type="application/octet-stream", background=forget)


@ROUTER.put("/{path:path}", include_in_schema=False)
async def upload_artifact(path: str, caller: CallerOf) -> Response:
    """Refused: artifacts are what the mesh's own jobs log."""
    raise FailedPrecondition(
        "artifacts cannot be logged through the gateway; metrics, parameters and tags can. "
        "Upload files with POST /v1/files",
        reason="READ_ONLY",
        field="path",
    )


def _parts(path: str) -> tuple[str, str, str]:
    """(``runs`` or ``models``, name, rest) of a path.

    Raises:
        NotFound: it leads to neither.
    """
    kind, _, rest = path.strip("/").partition("/")
    name, _, rest = rest.partition("/")
    if kind not in ("runs", "models") or not name:
        raise no_such("artifact", path)
    return kind, name, rest


async def _files(caller: Caller, version: pb.Version) -> _Files:
    try:
        return await asyncio.to_thread(_read_files, caller, version)
    except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
        raise _unreadable(error) from error


def _read_files(caller: Caller, version: pb.Version) -> _Files:
    artifact = version.artifact
    # A directory's digest is its manifest's own sha256.
    path = caller.gateway.content.file(f"{artifact.uri}/{manifest.MANIFEST_NAME}", artifact.digest)
    entries = json.loads(path.read_bytes())["files"]
    return {entry["path"]: (entry["sha256"], int(entry["size_bytes"])) for entry in entries}


async def _file_of_version(caller: Caller, version: pb.Version, name: str) -> Response:
    files = await _files(caller, version)
    if name not in files:  # so that no name leads out of the artifact
        raise no_such("artifact", name)
    uri = f"{version.artifact.uri}/{name}"
    try:
        path = await asyncio.to_thread(caller.gateway.content.file, uri, files[name][0])
    except (manifest.ManifestError, ContentOutsideRoot, OSError) as error:
        raise _unreadable(error) from error
    return FileResponse(path, media_type="application/octet-stream")


def _in_folder(files: _Files, folder: str) -> list[dict[str, Any]]:
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    found: dict[str, dict[str, Any]] = {}
    for path, (_, size) in sorted(files.items()):
        if path.startswith(prefix):
            name, _, deeper = path.removeprefix(prefix).partition("/")
            size_of_file = {} if deeper else {"file_size": size}
            found[name] = {"path": name, "is_dir": bool(deeper), **size_of_file}
    return list(found.values())


def _unreadable(error: Exception) -> Unavailable:
    return Unavailable(
        "the gateway cannot read the model's artifact; tell the operator that it needs the "
        f"mesh's data root ({type(error).__name__})",
        reason="ARTIFACT_UNREADABLE",
    )
