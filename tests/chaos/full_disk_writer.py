"""The write paths of the services, each as one function, and what their callers are told."""

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from millrace_data.app import FileApp
from millrace_data.domain import Dataset, FilePurpose, PythonStandardLibrary, Recipe, RequestKey
from millrace_data.domain import utc_now as now
from millrace_data.events import FactRecorder
from millrace_data.file_bytes import FileBytes
from millrace_data.row_keeping import RowKeeper
from millrace_data.row_store import RowStore
from millrace_data.schema import METADATA, OUTBOX
from millrace_data.store import DatasetStore, FileStore
from millrace_registry.repository import ModelRepository
from millrace_registry.triton_config import EngineSettings
from millrace_runtime import manifest, storage
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, open_database
from millrace_runtime.outbox import Outbox
from millrace_runtime.work import JobFailure, run_job

CONTENT = bytes(range(256)) * 100
BLOCK_BYTES = 25_000


def upload(folder: Path) -> str:
    """A file, its row and its fact."""
    record = FactRecorder(Outbox(OUTBOX))
    content = ContentStore(str(folder / "data"), folder / "cache")
    database = _database(folder)
    files = FileStore(database, record)
    rows = RowKeeper(RowStore(database), content)
    app = FileApp(files, FileBytes(content, 1 << 20), rows=rows, ring=lambda: None)
    unique = CONTENT + uuid.uuid4().bytes
    return app.upload("acme", "a.txt", FilePurpose.USER_DATA, "", [unique]).id


def row(folder: Path) -> str:
    """A row alone, with what it asks for."""
    store = DatasetStore(
        _database(folder), FactRecorder(Outbox(OUTBOX)), owner="a", lease_seconds=15
    )
    dataset = Dataset(
        "acme", uuid.uuid4().hex, "x" * 9000, PythonStandardLibrary(), Recipe(), now(), now()
    )
    return store.add(dataset, RequestKey()).id


def directory(folder: Path) -> str:
    """A committed directory, as datasets, checkpoints and artifacts are."""
    target = folder / "data" / "runs" / "step-1"
    manifest.remove_tree(target)
    for abandoned in target.parent.glob(f"{manifest.TEMPORARY_PREFIX}*"):
        manifest.remove_tree(abandoned)
    temporary = manifest.temporary_sibling(target)
    try:
        (temporary / "model").mkdir()
        for name in ("model/weights", "config"):
            (temporary / name).write_bytes(CONTENT)
        return manifest.commit(temporary, target, "checkpoint", {})
    finally:
        manifest.remove_tree(temporary)


def placement(folder: Path) -> str:
    """A version in Triton's repository."""
    artifact = folder / "data"
    artifact.mkdir(exist_ok=True)
    repository = ModelRepository(folder / "triton", EngineSettings())
    repository.add_version("acme.demo", 1, artifact)
    repository.list_versions("acme.demo", [1])
    return "1"


def job(folder: Path) -> str:
    """A job subprocess: its specification, its log, and what it commits.

    Raises:
        JobFailed
    """
    spec = {"output": str(folder / "data" / "job" / uuid.uuid4().hex)}
    scratch = folder / "scratch" / "job"
    outcome = run_job(
        "tests.chaos.full_disk_job", spec, scratch, lambda message: None, threading.Event()
    )
    if isinstance(outcome, JobFailure):
        raise JobFailed(outcome)
    return spec["output"]


class JobFailed(Exception):
    """``outcome`` is what the job's service is told."""

    def __init__(self, outcome: JobFailure) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


PATHS: dict[str, Callable[[Path], str]] = {
    "upload": upload,
    "row": row,
    "directory": directory,
    "placement": placement,
    "job": job,
}


def attempt(path: str, folder: Path) -> dict[str, str]:
    """Take one write path; what its caller is told."""
    try:
        return {"done": PATHS[path](folder)}
    except JobFailed as error:
        return {"reason": error.outcome.reason, "message": error.outcome.message}
    except Exception as error:  # as around every call: it becomes an answer
        answer = storage.answer_of(error)
        if answer is None:
            return {"reason": "INTERNAL", "message": repr(error)}
        return {"reason": answer.reason, "message": str(answer)}


def _database(folder: Path) -> Database:
    database = open_database(f"sqlite:///{folder}/service.db")
    METADATA.create_all(database.engine)
    return database
