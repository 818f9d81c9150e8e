"""Requests that may be sent twice (AIP-155): same ``request_id``, same answer."""

from typing import Any

from google.protobuf.message import Message
from sqlalchemy import Column, Connection, String, Table, UniqueConstraint, select

from millrace_runtime.errors import AlreadyExists
from millrace_runtime.manifest import sha256_bytes


def request_columns() -> tuple[Any, ...]:
    """What a table of created resources needs beside its ``id`` and ``tenant``."""
    return (
        Column("request_id", String(128)),
        Column("request_digest", String(80)),
        UniqueConstraint("tenant", "request_id"),
    )


def request_digest(request: Message) -> str:
    """Identifies a request's content."""
    return sha256_bytes(request.SerializeToString(deterministic=True))


def find_made(
    connection: Connection, table: Table, tenant: str, request_id: str, digest: str
) -> str | None:
    """The id of what an earlier request with this ``request_id`` made, if there was one.

    Raises:
        AlreadyExists: there was one, with other content.
    """
    if not request_id:
        return None
    query = select(table.c.id, table.c.request_digest).where(
        table.c.tenant == tenant, table.c.request_id == request_id
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.request_digest != digest:
        raise AlreadyExists(
            f"request_id {request_id!r} was used for another request; use a new one",
            reason="REQUEST_ID_REUSED",
            field="request_id",
        )
    return str(row.id)


def values(request_id: str, digest: str) -> dict[str, str | None]:
    """Column values for the row that a request makes; an empty id is none."""
    return {"request_id": request_id or None, "request_digest": digest if request_id else None}
