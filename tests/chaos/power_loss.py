"""Power is cut while a service writes: what it acknowledged is there, and nothing is half there.

The power loss is ext4's own (EXT4_IOC_SHUTDOWN) on a loop mount: what was not flushed is gone,
with or without the journal that is in memory. It takes the right to mount.
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, select

from millrace_runtime import manifest
from millrace_runtime.manifest import TEMPORARY_PREFIX, ManifestError
from tests.chaos.disks import LOG_FLUSH, NO_LOG_FLUSH, Ext4Disk
from tests.chaos.outcome import Outcome, Say
from tests.chaos.power_loss_writer import KINDS, METADATA, ROWS, open_folder

_MOST_ACKNOWLEDGEMENTS = 150
Acknowledged = list[tuple[str, int, str]]


def run(
    runs: int,
    seed: int,
    directory: Path,
    say: Say,
    *,
    kinds: Sequence[str] = KINDS,
    synchronous: str = "",
) -> Outcome:
    """Cut the power ``runs`` times. ``synchronous`` replaces the databases' own setting.

    Raises:
        DisksNotAllowed
    """
    draw = random.Random(seed)
    disk = Ext4Disk(directory / "disk.ext4", directory / "disk")
    violations: list[str] = []
    acknowledged = unacknowledged = 0
    for number in range(1, runs + 1):
        disk.mount()
        try:
            folder = disk.folder / "service"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            arguments = [str(draw.randrange(1 << 30)), ",".join(kinds), synchronous]
            flag = draw.choice((LOG_FLUSH, NO_LOG_FLUSH))
            told = _work_until_cut(disk, folder, arguments, flag, draw)
            disk.unmount()
            disk.mount()
            found = list(_broken_promises(folder, told))
            violations += [f"round {number} (flag {flag}): {each}" for each in found]
            acknowledged += len(told)
            unacknowledged += _row_count(folder) - len(told)
        finally:
            disk.unmount()
        say(f"round {number}: {len(told)} acknowledged, {len(found)} broken")
    figures = {"acknowledged_count": acknowledged, "kept_beyond_that_count": unacknowledged}
    return Outcome("power_loss", runs, violations, figures)


def _work_until_cut(
    disk: Ext4Disk, folder: Path, arguments: list[str], flag: int, draw: random.Random
) -> Acknowledged:
    command = [sys.executable, "-m", "tests.chaos.power_loss_writer", str(folder), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        assert writer.stdout is not None
        try:
            lines = iter(writer.stdout)
            assert next(lines, "") == "ready\n", "the writer did not begin"
            told = [next(lines) for _ in range(draw.randrange(1, _MOST_ACKNOWLEDGEMENTS))]
            disk.cut_power(flag)
            told += list(lines)  # it ends by itself: its disk is gone
        finally:
            writer.kill()
    return [_parse(line) for line in told]


def _parse(line: str) -> tuple[str, int, str]:
    kind, number, digest = line.removesuffix("\n").split(" ")
    return kind, int(number), digest


def _row_count(folder: Path) -> int:
    with _database(folder) as connection:
        return len(connection.execute(select(ROWS)).all())


@contextmanager
def _database(folder: Path) -> Iterator[Connection]:
    database, _, _ = open_folder(folder)
    METADATA.create_all(database.engine)  # even the tables may be lost
    with closing(database), database.transaction() as connection:
        yield connection


def _broken_promises(folder: Path, told: Acknowledged) -> Iterator[str]:
    with _database(folder) as connection:
        rows = {row.number: row for row in connection.execute(select(ROWS))}
        check = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
    if check != "ok":
        yield f"the database is damaged: {check}"
    for kind, number, digest in told:
        if number not in rows or rows[number].digest != digest:
            yield f"{kind} {number} was acknowledged and is lost"
    for row in rows.values():
        if complaint := _content_complaint(folder / "data", row.kind, row.number, row.digest):
            yield f"row {row.number} is there, but {complaint}"
    yield from _half_visible(folder / "data")


def _content_complaint(root: Path, kind: str, number: int, digest: str) -> str:
    try:
        if kind == "directory":
            manifest.verify(root / "runs" / str(number) / "step", digest)
        if kind == "file":
            found = manifest.sha256_file(root / "files" / digest.removeprefix("sha256:"))
            return "" if found == digest else f"its file is {found}, not {digest}"
    except (ManifestError, OSError) as error:
        return str(error)
    return ""


def _half_visible(root: Path) -> Iterator[str]:
    """Content that has its final name must be whole, also where nobody heard of it."""
    for path in root.glob("runs/*/step"):
        try:
            _, digest = manifest.read(path)
            manifest.verify(path, digest)
        except ManifestError as error:
            yield f"half a directory is visible: {error}"
    for path in root.glob("files/*"):
        is_ours = not path.name.startswith(TEMPORARY_PREFIX)
        if is_ours and manifest.sha256_file(path) != f"sha256:{path.name}":
            yield f"half a file is visible: {path.name}"
