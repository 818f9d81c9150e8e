"""``/v1/keys``: who may call. Only an operator's key may ask."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from millrace_gateway.domain import Key, Role
from millrace_gateway.rest.caller import CallerOf
from millrace_gateway.rest.listing import (
    After,
    Limit,
    ListObject,
    page_of,
    page_size,
    token_after,
)
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import RequestBody

ROUTER = router("keys", "/v1/keys")

_TENANT = r"^[a-z][a-z0-9-]{0,62}$"

TenantQuery = Annotated[
    str | None, Query(pattern=_TENANT, description="Whose keys; by default your own tenant's.")
]


class CreateKey(RequestBody):
    """``tenant`` is by default your own. A tenant is made by its first key."""

    tenant: Annotated[str, Field(pattern=_TENANT)] | None = None
    display_name: Annotated[str, Field(max_length=128, pattern=r"^[^\x00]*$")] = ""
    role: Literal["member", "operator"] = "member"


class KeyObject(BaseModel):
    id: str
    object: Literal["key"] = "key"
    tenant: str
    display_name: str
    role: str
    created_at: int
    revoked_at: int | None


class CreatedKey(KeyObject):
    """``secret`` is shown this once; only its hash is kept."""

    secret: str


@ROUTER.post("", response_model=CreatedKey)
async def create_key(body: CreateKey, caller: CallerOf) -> CreatedKey:
    keys, principal = caller.gateway.keys, caller.principal
    key, secret = await asyncio.to_thread(
        keys.create, principal, body.tenant or caller.tenant, body.display_name, Role(body.role)
    )
    return CreatedKey(**_fields(key), secret=secret)


@ROUTER.get("", response_model=ListObject[KeyObject])
async def list_keys(
    caller: CallerOf, tenant: TenantQuery = None, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Keys, newest first, revoked ones too; never their secrets."""
    keys, next_page_token = await asyncio.to_thread(
        caller.gateway.keys.list,
        caller.principal,
        tenant or caller.tenant,
        page_size(limit),
        token_after(after),
    )
    return page_of([KeyObject(**_fields(key)) for key in keys], bool(next_page_token))


@ROUTER.delete("/{key_id}", response_model=KeyObject)
async def revoke_key(key_id: str, caller: CallerOf, tenant: TenantQuery = None) -> KeyObject:
    """Make a key worthless, within a second. Its record stays."""
    caller.name("keys", key_id, "API key")
    key = await asyncio.to_thread(
        caller.gateway.keys.revoke, caller.principal, tenant or caller.tenant, key_id
    )
    return KeyObject(**_fields(key))


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "display_name": key.display_name,
        "role": key.role.value,
        "created_at": int(key.create_time.timestamp()),
        "revoked_at": int(key.revoke_time.timestamp()) if key.revoke_time else None,
    }
