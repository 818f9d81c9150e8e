"""``/mlflow/…/mlflow-artifacts``: files of runs and of versions, as MLflow's client moves them.

``runs/<run id>/…`` is what a run has logged, where ``millrace/`` is the mesh's own; there and in
``models/<model>/<version>/…``, which is what a version is, nothing can be written.
Reference: mlflow/store/artifact/http_artifact_repo.py, which is the protocol's client
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from millrace_gateway.rest import errors, mlflow_job_files
from millrace_gateway.rest.caller import Caller, CallerOf, no_such
from millrace_gateway.rest.mlflow_content import BYTES, file_of, files_of, folder_entry, in_folder
from millrace_gateway.rest.mlflow_models import get_version
from millrace_gateway.rest.routing import router
from millrace_gateway.tracking_artifacts import RunFiles, checked, open_run
from millrace_gateway.tracking_calls import artifact_uri
from millrace_runtime.errors import FailedPrecondition, InvalidArgument

ROUTER = router("mlflow", "/mlflow/api/2.0")

_ARTIFACTS = "/mlflow-artifacts/artifacts"
_FILE = f"{_ARTIFACTS}/{{path:path}}"
_ONE_PIECE = "Multipart upload is not supported for the current artifact repository"


@ROUTER.get(_ARTIFACTS)
async def list_artifacts(caller: CallerOf, path: str = "") -> dict[str, Any]:
    """The files and folders in a folder."""
    kind, name, rest = _parts(path)
    if kind == "runs":
        return {"files": await _listed(caller, name, rest)}
    number, _, folder = rest.partition("/")
    version = await get_version(caller, name, number)
    return {"files": in_folder(await files_of(caller, version.artifact), folder)}


@ROUTER.get("/mlflow/artifacts/list")
async def list_run_artifacts(
    caller: CallerOf, run_id: str = "", run_uuid: str = "", path: str = "", page_token: str = ""
) -> dict[str, Any]:
    """The same of a run, as MLflow's REST API has it, with whole paths; in one page."""
    if page_token:
        raise InvalidArgument("the list comes in one page", field="page_token")
    id = run_id or run_uuid
    found = await _listed(caller, id, path.strip("/"))
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    files = [{**one, "path": prefix + one["path"]} for one in found]
    return {"root_uri": artifact_uri(id), "files": files}


@ROUTER.get(_FILE, include_in_schema=False)  # bytes: no schema says them
async def download_artifact(path: str, caller: CallerOf) -> Response:
    kind, name, rest = _parts(path)
    if kind == "models":
        number, _, file = rest.partition("/")
        return await file_of(caller, (await get_version(caller, name, number)).artifact, file)
    run = await _open(caller, name)
    if _is_own(rest):
        return await mlflow_job_files.file(caller, run.job, _within_own(rest))
    folder = await _temporary()
    forget = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    try:
        found = await asyncio.to_thread(run.fetch, rest, folder)
    except BaseException:
        await forget()
        raise
    return FileResponse(found, media_type=BYTES, background=forget)


@ROUTER.put(_FILE, include_in_schema=False)
async def upload_artifact(path: str, request: Request, caller: CallerOf) -> dict[str, Any]:
    """Keep the body as a file of a run, in place of one of that name, once all of it is here."""
    name, rest = _writable(path)
    if not rest:
        raise InvalidArgument("a file needs a name below its run", field="path")
    if request.url.query:
        raise InvalidArgument("a '?' cannot be in the name of an artifact", field="path")
    run = await _open(caller, name)
    place = checked(rest)
    async with _received(request, place.rpartition("/")[2]) as file:
        await asyncio.to_thread(run.keep, file, place)
    return {}


@ROUTER.delete(_FILE, include_in_schema=False)
async def delete_artifact(path: str, caller: CallerOf) -> dict[str, Any]:
    """Delete a file or a folder of a run, or all its files; what is not there is gone already."""
    name, rest = _writable(path)
    run = await _open(caller, name)
    await asyncio.to_thread(run.remove, rest)
    return {}


@ROUTER.post("/mlflow-artifacts/mpu/{path:path}", include_in_schema=False)
async def upload_in_parts(path: str, caller: CallerOf) -> Response:
    """Refused in the words at which MLflow's client sends the file in one piece."""
    return errors.answer(501, errors.body(501, _ONE_PIECE, code="not_implemented"))


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


def _writable(path: str) -> tuple[str, str]:
    """The id of a run, and the path of an artifact of it that a client may write.

    Raises:
        NotFound: the path leads to no run.
        FailedPrecondition: it is the mesh's own.
    """
    kind, name, rest = _parts(path)
    if kind == "models" or _is_own(rest):
        what = "a version is what passed its gate" if kind == "models" else "it is the mesh's own"
        raise FailedPrecondition(
            f"{path!r} cannot be changed: {what}; log artifacts of runs, elsewhere than in "
            f"their folder {mlflow_job_files.FOLDER!r}",
            reason="READ_ONLY",
            field="path",
        )
    return name, rest


def _is_own(rest: str) -> bool:
    return rest.partition("/")[0] == mlflow_job_files.FOLDER


def _within_own(rest: str) -> str:
    return rest.partition("/")[2]


async def _open(caller: Caller, run_id: str) -> RunFiles:
    return await asyncio.to_thread(open_run, caller.gateway.tracking, caller.tenant, run_id)


async def _listed(caller: Caller, run_id: str, path: str) -> list[dict[str, Any]]:
    run = await _open(caller, run_id)
    if _is_own(path):
        return await mlflow_job_files.listed(caller, run.job, _within_own(path))
    found = await asyncio.to_thread(run.entries, path)
    if not path and await mlflow_job_files.exists(caller, run.job):
        found.append(folder_entry(mlflow_job_files.FOLDER))
    return found


async def _temporary() -> Path:
    return Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="mlflow-artifact-"))


@asynccontextmanager
async def _received(request: Request, name: str) -> AsyncIterator[Path]:
    """The request's body as a file of that name, for as long as it is used.

    Raises:
        InvalidArgument: the client went away before its end.
    """
    folder = await _temporary()
    try:
        with (folder / name).open("wb") as file:
            async for chunk in request.stream():
                await asyncio.to_thread(file.write, chunk)
        yield folder / name
    except ClientDisconnect as error:
        raise InvalidArgument("the artifact broke off before its end") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
