"""What lies on the disk of a mesh and belongs to nothing: left by what was killed, or lost.

Everything is kept under the id, or the digest, of what it belongs to. The services' embedded
databases are read, never written; what belongs to a service with its database elsewhere is
not looked at.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from millrace_client import text
from millrace_client.home import Home
from millrace_runtime.manifest import TEMPORARY_PREFIX

OLD_SECONDS = 3600.0
_WORK_PREFIX = ".work-"
_SHOWN = 3


@dataclass(frozen=True)
class Place:
    """Where content lies, and the query for the names that may lie there.

    Attributes:
        what: in the words of people.
        pattern: of the paths, below the mesh's home.
        stage: whose database knows the names.
        query: SQL for them, in one column.
    """

    what: str
    pattern: str
    stage: str
    query: str


PLACES = (
    Place("files", "data/files/*", "data", "SELECT substr(digest, 8) FROM stored_bytes"),
    Place("datasets", "data/datasets/*", "data", "SELECT id FROM datasets"),
    Place("runs", "data/runs/*", "trainer", "SELECT id FROM runs"),
    Place("tuning jobs", "data/tuning/*/*", "tuner", "SELECT id FROM jobs"),
    Place("artifacts", "data/artifacts/*", "compressor", "SELECT id FROM compressions"),
    Place("job scratch", "scratch/data/datasets/*", "data", "SELECT id FROM datasets"),
    Place("job scratch", "scratch/trainer/runs/*", "trainer", "SELECT id FROM runs"),
    Place("job scratch", "scratch/tuner/jobs/*", "tuner", "SELECT id FROM jobs"),
    Place(
        "job scratch",
        "scratch/compressor/compressions/*",
        "compressor",
        "SELECT id FROM compressions",
    ),
)


@dataclass(frozen=True)
class Orphan:
    """Something that belongs to nothing. ``why`` says what was looked for."""

    path: Path
    why: str


def find(home: Home, now: float | None = None) -> list[Orphan]:
    """All that lies there for more than an hour and belongs to nothing.

    Raises:
        OSError, sqlite3.Error: the disk or a database cannot be read.
    """
    before = (time.time() if now is None else now) - OLD_SECONDS
    found = [*temporary(home), *nameless(home), *unknown_versions(home)]
    return [orphan for orphan in found if _changed(orphan.path) < before]


def temporary(home: Home) -> Iterator[Orphan]:
    """What was being written when its writer ended."""
    for root in (home.data, home.triton_models):
        for path in root.rglob(f"{TEMPORARY_PREFIX}*"):
            yield Orphan(path, "was never finished")


def nameless(home: Home) -> Iterator[Orphan]:
    """What bears the name of nothing that its service knows."""
    for place in PLACES:
        known = names(home, place.stage, place.query)
        if known is not None:
            paths = home.path.glob(place.pattern)
            yield from (Orphan(path, f"no row of {place.stage}") for path in _others(paths, known))


def _others(paths: Iterator[Path], known: Collection[str]) -> Iterator[Path]:
    for path in paths:
        is_temporary = path.name.startswith(TEMPORARY_PREFIX)  # told of already
        if not is_temporary and path.name.removeprefix(_WORK_PREFIX) not in known:
            yield path


def unknown_versions(home: Home) -> Iterator[Orphan]:
    """Folders of Triton's model repository whose artifact is no version's."""
    artifacts = names(home, "registry", "SELECT artifact FROM versions")
    if artifacts is None:
        return
    known = {json.loads(artifact)["uri"] for artifact in artifacts}
    for folder in home.triton_models.glob("*/[0-9]*"):
        if (folder / "artifact").resolve().as_uri() not in known:
            yield Orphan(folder, "no version of the registry")


def names(home: Home, stage: str, query: str) -> set[str] | None:
    """What a service's embedded database answers; None when there is none."""
    path = home.databases / f"{stage}.db"
    if not path.exists():
        return None
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0) as connection:
        found = {str(row[0]) for row in connection.execute(query)}
    connection.close()
    return found


def size_bytes(orphans: Collection[Orphan]) -> int:
    return sum(_size_bytes(orphan.path) for orphan in orphans)


def describe(orphans: Collection[Orphan], home: Home) -> str:
    """How much there is, and the first few."""
    first = sorted(orphans, key=lambda orphan: orphan.path)[:_SHOWN]
    told = ", ".join(f"{orphan.path.relative_to(home.path)} ({orphan.why})" for orphan in first)
    more = " …" if len(orphans) > _SHOWN else ""
    return f"{text.size(size_bytes(orphans))} in {len(orphans)} orphans: {told}{more}"


def _changed(path: Path) -> float:
    """When anything in it was written last; what has gone meanwhile is as good as new."""
    try:
        return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:
        return float("inf")


def _size_bytes(path: Path) -> int:
    try:
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        return sum(file.lstat().st_size for file in files)
    except FileNotFoundError:
        return 0
