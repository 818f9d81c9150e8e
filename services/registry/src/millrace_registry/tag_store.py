"""Tags of models and versions, inside the caller's transaction."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, select, update

from millrace_registry.schema import MODELS, VERSIONS
from millrace_runtime.errors import InvalidArgument, NotFound

MOST = 100

Key = tuple[str, str, int | None]
"""Tenant, model, and a version's number; None: the model itself."""


def change(
    connection: Connection, key: Key, tags: Mapping[str, str], removed: Collection[str]
) -> dict[str, str]:
    """Put ``tags`` and take ``removed`` away; all that there are afterwards.

    Raises:
        NotFound: there is no such model or version (any more).
        InvalidArgument: there would be more than ``MOST``.
    """
    tenant, model, number = key
    is_meant: ColumnElement[bool]
    if number is None:
        is_meant = (MODELS.c.tenant == tenant) & (MODELS.c.id == model)
        return _change(connection, MODELS, is_meant & MODELS.c.is_deleted.is_(False), tags, removed)
    columns = (VERSIONS.c.tenant, VERSIONS.c.model, VERSIONS.c.number)
    is_meant = and_(*(column == value for column, value in zip(columns, key, strict=True)))
    return _change(connection, VERSIONS, is_meant, tags, removed)


def _change(
    connection: Connection,
    table: Table,
    is_meant: ColumnElement[bool],
    tags: Mapping[str, str],
    removed: Collection[str],
) -> dict[str, str]:
    # An UPDATE first, so that on SQLite too who comes second reads what the first has written.
    touched = update(table).where(is_meant).values(tags=table.c.tags)
    if connection.execute(touched).rowcount == 0:
        raise NotFound("there is no such model or version")
    known: Any = connection.execute(select(table.c.tags).where(is_meant)).scalar_one()
    left = {key: value for key, value in (known or {}).items() if key not in removed}
    changed = {**left, **tags}
    if len(changed) > MOST:
        raise InvalidArgument(f"more than {MOST} tags; remove some first", field="tags")
    connection.execute(update(table).where(is_meant).values(tags=changed))
    return changed
