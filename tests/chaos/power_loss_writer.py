"""What is under way when the power is cut: ``python -m tests.chaos.power_loss_writer FOLDER``.

Does operations as the services do them, until the disk is gone, and acknowledges each on
standard output once a service would: ``<kind> <number> <digest>``.

    row        one SQLite transaction
    directory  a committed directory, then its row
    file       an uploaded file put in place, then its row
"""

import itertools
import random
import sys
from pathlib import Path

from sqlalchemy import Column, Integer, MetaData, String, Table, event

from millrace_data.domain import Content
from millrace_data.file_bytes import FileBytes
from millrace_runtime import manifest
from millrace_runtime.content import ContentStore
from millrace_runtime.database import Database, open_database

METADATA = MetaData()
ROWS = Table(
    "operations",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("digest", String, nullable=False),
)
KINDS = ("row", "directory", "file")
MAXIMUM_FILE_BYTES = 20_000


def open_folder(folder: Path) -> tuple[Database, ContentStore, FileBytes]:
    """The database and the content of ``folder``."""
    content = ContentStore(str(folder / "data"), folder / "cache")
    database = open_database(f"sqlite:///{folder}/service.db")
    return database, content, FileBytes(content, 1 << 20)


def write(folder: Path, seed: int, kinds: list[str], synchronous: str) -> None:
    """Work until the disk fails."""
    draw = random.Random(seed)
    database, content, files = open_folder(folder)
    if synchronous:
        event.listen(
            database.engine,
            "connect",
            lambda connection, _: connection.execute(f"PRAGMA synchronous={synchronous}"),
        )
    METADATA.create_all(database.engine)
    print("ready", flush=True)
    for number in itertools.count(1):
        kind = draw.choice(kinds)
        digest = make(kind, number, draw, content, files)
        with database.transaction() as connection:
            connection.execute(ROWS.insert().values(number=number, kind=kind, digest=digest))
        print(kind, number, digest, flush=True)


def make(
    kind: str, number: int, draw: random.Random, content: ContentStore, files: FileBytes
) -> str:
    """Commit what the row is to name; return its digest."""
    if kind == "directory":
        target = content.working_path(f"runs/{number}/step")
        temporary = manifest.temporary_sibling(target)
        (temporary / "model").mkdir()
        for name in ("model/weights", "config"):
            (temporary / name).write_bytes(draw.randbytes(draw.randrange(1, MAXIMUM_FILE_BYTES)))
        return manifest.commit(temporary, target, "checkpoint", {"step": number})
    if kind == "file":
        with files.staged([draw.randbytes(draw.randrange(1, MAXIMUM_FILE_BYTES))]) as staged:
            files.put_in_place(staged)
            return Content("", staged.digest, staged.size_bytes).digest
    return ""


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4])
