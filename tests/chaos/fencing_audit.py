"""A record of every write that PostgreSQL itself keeps, and who had the right to make it.

A trigger notes each row change with its transaction and the connection's ``application_name``,
which names one worker. A note lives and dies with its transaction, and ``track_commit_timestamp``
says when that was committed. So nothing that a worker does, or forgets, can hide a write.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from millrace_runtime.database import Database

POSTGRES_SETTINGS = {"track_commit_timestamp": "on", "max_connections": "300", "fsync": "off"}
DRIVER = "driver"

# Which column names the leased row, by table; the registry's tables all belong to its endpoint.
_ITEM_COLUMNS = {
    "datasets": "id",
    "runs": "id",
    "run_metrics": "run_id",
    "jobs": "id",
    "job_events": "job",
    "compressions": "id",
    "controllers": "id",
}
_LEASED_TABLES = ("datasets", "runs", "jobs", "compressions", "controllers")
_ITEM_IN_FACT = re.compile(
    r"(?:datasets|runs|jobs|compressions)/((?:dataset|run|job|compression)-\w+)"
)
_NOTES = """
CREATE TABLE public.notes (
    sequence bigserial PRIMARY KEY, xid xid, writer text, stage text, name text,
    old jsonb, new jsonb);
CREATE FUNCTION public.note() RETURNS trigger AS $$ BEGIN
    INSERT INTO public.notes (xid, writer, stage, name, old, new) VALUES (
        pg_current_xact_id()::xid, current_setting('application_name'),
        TG_TABLE_SCHEMA, TG_TABLE_NAME,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END);
    RETURN NULL;
END $$ LANGUAGE plpgsql;
"""
_WATCH = """
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON {stage}.{table}
    FOR EACH ROW EXECUTE FUNCTION public.note()
"""
_READ = """
SELECT *, pg_xact_commit_timestamp(xid) AS time FROM public.notes
WHERE sequence > :after ORDER BY time, sequence
"""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """One row change that was committed at ``time``."""

    time: datetime
    writer: str
    stage: str
    table: str
    old: Row | None
    new: Row | None

    @property
    def item(self) -> tuple[str, str]:
        """(stage, id) of the leased row that the change belongs to."""
        row = self.new or self.old or {}
        if self.stage.startswith("registry"):
            return self.stage, "endpoint"
        if self.table == "outbox":
            found = _ITEM_IN_FACT.search(row["document"])
            assert found is not None, f"whose fact is this? {row['document']}"
            return self.stage, found.group(1)
        if self.table == "checkpoints":
            return self.stage, row.get("run_id") or row["job"]
        return self.stage, row[_ITEM_COLUMNS[self.table]]

    @property
    def is_leased_row(self) -> bool:
        return self.table in _LEASED_TABLES

    @property
    def is_claim(self) -> bool:
        """The writer takes the row under the next epoch."""
        if not self.is_leased_row or self.old is None or self.new is None:
            return False
        is_next = bool(self.new["epoch"] == self.old["epoch"] + 1)
        return is_next and bool(self.new["lease_owner"] == self.writer)


def prepare(database: Database) -> None:
    """Make the record."""
    with database.transaction() as connection:
        connection.exec_driver_sql(_NOTES)


def watch(database: Database, stage: str, tables: Iterable[str]) -> None:
    """Note what happens to ``tables`` of the schema ``stage``."""
    with database.transaction() as connection:
        for table in tables:
            connection.exec_driver_sql(_WATCH.format(stage=stage, table=table))


def read(database: Database, after: int = 0) -> list[Note]:
    """All notes, in the order in which their transactions were committed."""
    with database.transaction() as connection:
        rows = connection.execute(text(_READ), {"after": after}).all()
    return [Note(r.time, r.writer, r.stage, r.name, r.old, r.new) for r in rows]


def stale_writes(notes: Sequence[Note]) -> list[str]:
    """One sentence for each write by a worker that did not hold the lease when it committed."""
    of_item: dict[tuple[str, str], list[Note]] = defaultdict(list)
    for note in notes:
        of_item[note.item].append(note)
    return [said for item, theirs in of_item.items() for said in _stale_writes_to(item, theirs)]


def _stale_writes_to(item: tuple[str, str], notes: Sequence[Note]) -> list[str]:
    found = []
    holder, epoch = "", 0
    for note in notes:
        is_new_row = note.is_leased_row and note.old is None
        if note.old == note.new or note.writer == DRIVER or is_new_row:
            continue
        if note.is_claim and note.new is not None:
            holder, epoch = note.writer, note.new["epoch"]
        elif note.writer != holder:
            found.append(
                f"{' '.join(item)}: {note.writer} wrote to {note.table} at {note.time} while "
                f"{holder or 'nobody'} held epoch {epoch}: {_difference(note)}"
            )
        elif note.is_leased_row and note.new is not None and note.new["lease_owner"] is None:
            holder = ""
    return found


def _difference(note: Note) -> str:
    old, new = note.old or {}, note.new or {}
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)[:400]
