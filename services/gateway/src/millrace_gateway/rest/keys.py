"""``/v1/keys``: who may call, and how much. Only an operator's key may ask."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from millrace_gateway.domain import Key, KeyLimits, Priority, Role
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
from millrace_runtime.errors import InvalidArgument

ROUTER = router("keys", "/v1/keys")

_TENANT = r"^[a-z][a-z0-9-]{0,62}$"

TenantQuery = Annotated[
    str | None, Query(pattern=_TENANT, description="Whose keys; by default your own tenant's.")
]


Limited = Annotated[int, Field(ge=1, le=2**31 - 1)]
PriorityWord = Literal["high", "default", "low"]


class LimitFields(RequestBody):
    """What a key may use, at all gateways together; null: the operator's default.

    ``priority`` is that of requests which ask for no other by ``service_tier``.
    """

    requests_per_minute: Limited | None = None
    tokens_per_minute: Limited | None = None
    concurrent_generations: Limited | None = None
    priority: PriorityWord = "default"

    def given(self) -> dict[str, int | Priority | None]:
        """The limits that the body names, null ones too, as ``KeyLimits`` has them."""
        names = LimitFields.model_fields.keys() & self.model_fields_set
        found: dict[str, int | Priority | None] = {name: getattr(self, name) for name in names}
        if "priority" in found:
            found["priority"] = Priority(self.priority)
        return found


class CreateKey(LimitFields):
    """``tenant`` is by default your own. A tenant is made by its first key."""

    tenant: Annotated[str, Field(pattern=_TENANT)] | None = None
    display_name: Annotated[str, Field(max_length=128, pattern=r"^[^\x00]*$")] = ""
    role: Literal["member", "operator"] = "member"


class UpdateKey(LimitFields):
    """What is not given stays as it is; null takes the key's own limit away."""


class KeyObject(BaseModel):
    id: str
    object: Literal["key"] = "key"
    tenant: str
    display_name: str
    role: str
    created_at: int
    revoked_at: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_generations: int | None
    priority: str


class CreatedKey(KeyObject):
    """``secret`` is shown this once; only its hash is kept."""

    secret: str


@ROUTER.post("", response_model=CreatedKey)
async def create_key(body: CreateKey, caller: CallerOf) -> CreatedKey:
    keys, principal = caller.gateway.keys, caller.principal
    key, secret = await asyncio.to_thread(
        keys.create,
        principal,
        body.tenant or caller.tenant,
        body.display_name,
        Role(body.role),
        KeyLimits(**body.given()),  # type: ignore[arg-type]  # each field has its own type
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


@ROUTER.patch("/{key_id}", response_model=KeyObject)
async def update_key(
    key_id: str, body: UpdateKey, caller: CallerOf, tenant: TenantQuery = None
) -> KeyObject:
    """Change a key's limits; they hold in every gateway within a second."""
    caller.name("keys", key_id, "API key")
    changes = body.given()
    if not changes:
        raise InvalidArgument("give at least one limit, or the priority, to change")
    key = await asyncio.to_thread(
        caller.gateway.keys.change_limits,
        caller.principal,
        tenant or caller.tenant,
        key_id,
        changes,
    )
    return KeyObject(**_fields(key))


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
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "concurrent_generations": key.limits.concurrent_generations,
        "priority": key.limits.priority.value,
    }
