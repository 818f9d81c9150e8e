"""The files of a tracked run, wherever MLflow keeps them. To the gateway they are bytes.

Everything here blocks: call it in a thread. Each run has a folder of its own, which no path leads
out of; whose the run is was asked before its folder is opened.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from millrace_gateway.tracking import Answer, Tracking, meaning
from millrace_runtime.errors import InvalidArgument, NotFound

_LONGEST_PATH_BYTES = 1000  # S3 takes keys of 1,024
_LONGEST_NAME_BYTES = 255  # as file systems do
_JOB_TAG = "millrace.job"


def open_run(tracking: Tracking, tenant: str, run_id: str) -> "RunFiles":
    """The files of one of a tenant's runs.

    Raises:
        NotFound: there is no such run, or it is another tenant's.
        FailedPrecondition: this mesh tracks nothing.
        Unavailable: the store does not answer.
    """
    tracking.open()
    with _translated():
        run = tracking.run(tenant, run_id)
        return RunFiles(tracking.repository(run), run.data.tags.get(_JOB_TAG, ""))


class RunFiles:
    """A run's files, by paths such as ``plots/loss.png``; the empty path is their folder.

    Attributes:
        job: the id of what the mesh tracks as this run, ``run-…`` or ``ftjob-…``; else empty.
    """

    def __init__(self, repository: Any, job: str) -> None:
        self._repository = repository
        self.job = job

    def entries(self, path: str) -> list[Answer]:
        """The files and folders in a folder; their names alone.

        Raises:
            InvalidArgument, Unavailable
        """
        with _translated():
            found = self._repository.list_artifacts(checked(path) or None)
        return [
            {"path": one.path.rpartition("/")[2], "is_dir": one.is_dir}
            | ({} if one.is_dir else {"file_size": one.file_size or 0})
            for one in found
        ]

    def fetch(self, path: str, folder: Path) -> Path:
        """A file: where it lies, if that is on a disk of this machine, else copied to ``folder``.

        Raises:
            NotFound, InvalidArgument, Unavailable
        """
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        target = None if isinstance(self._repository, LocalArtifactRepository) else str(folder)
        try:
            with _translated():
                found = Path(self._repository.download_artifacts(checked(path), target))
        except OSError as error:
            raise NotFound(f"the run has no artifact {path!r}") from error
        if not found.is_file():
            raise NotFound(f"{path!r} is no file")
        return found

    def keep(self, file: Path, path: str) -> None:
        """Keep ``file``, which has the name that ``path`` ends with, in place of what was there.

        Raises:
            InvalidArgument: a folder has that path, or a file that of one of its folders.
            Unavailable
        """
        folder = checked(path).rpartition("/")[0]
        try:
            with _translated():
                self._repository.log_artifact(str(file), folder or None)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise InvalidArgument(
                f"{path!r} cannot be written: a file is in the place of one of its folders, or a "
                "folder in its own",
                field="path",
            ) from error

    def remove(self, path: str) -> None:
        """Remove a file or a folder; nothing happens when it is not there.

        Raises:
            InvalidArgument, Unavailable
        """
        with _translated():
            self._repository.delete_artifacts(checked(path) or None)


def checked(path: str) -> str:
    """``path``, which leads to a place below a run's folder, or to the folder itself.

    Raises:
        InvalidArgument: it leads elsewhere, or nothing that MLflow keeps can have such a name.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.uri import validate_path_is_safe

    names = path.split("/") if path else []
    is_plain = "\\" not in path and all(  # which parts names where some clients run
        name not in ("", ".", "..") and len(name.encode()) <= _LONGEST_NAME_BYTES for name in names
    )
    try:
        # MLflow reads escapes (%2e) when it looks for a file, and not when it writes one.
        is_safe = not path or validate_path_is_safe(path) == path  # type: ignore[no-untyped-call]
    except (MlflowException, ValueError):
        is_safe = False
    if not is_plain or not is_safe or len(path.encode()) > _LONGEST_PATH_BYTES:
        raise InvalidArgument(
            f"{path[:100]!r} is no path of an artifact: names joined by '/', at most "
            f"{_LONGEST_PATH_BYTES} bytes in all and {_LONGEST_NAME_BYTES} each, none of which is "
            "'.' or '..' or holds '\\', '#', an escape such as %2e or a control character",
            field="path",
        )
    return path


@contextmanager
def _translated() -> Iterator[None]:
    """What MLflow raises, as an error for users."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise meaning(error) from error
