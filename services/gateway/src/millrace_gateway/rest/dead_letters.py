"""``/v1/dead_letters``: facts that a stage could not handle, to be replayed or given up."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import Query
from pydantic import BaseModel, Field

from millrace_gateway.letters import Shown
from millrace_gateway.rest.caller import CallerOf
from millrace_gateway.rest.listing import After, Limit, ListObject, page_of, page_size
from millrace_gateway.rest.routing import router
from millrace_gateway.rest.shapes import Failure

ROUTER = router("dead letters", "/v1/dead_letters")

TenantQuery = Annotated[
    str | None,
    Query(
        pattern=r"^[a-z][a-z0-9-]{0,62}$",
        description="Whose; by default your own tenant's, and only an operator may name another.",
    ),
]


class DeadLetter(BaseModel):
    """A fact that ``consumer`` could not handle, and why.

    While ``status`` is ``replaying`` its stage has still to take it. What is no CloudEvent is
    shown as text, in ``payload``.
    """

    id: str
    object: Literal["dead_letter"] = "dead_letter"
    tenant: str
    status: Literal["refused", "replaying"]
    consumer: str = Field(description="The stage that refused it.")
    fact: str = Field(description="Its producer and its kind, such as data.dataset.ready.")
    subject: str
    error: Failure
    deliveries: int = Field(description="How often the stage tried, the last time.")
    created_at: int = Field(description="When it was refused last.")
    event: dict[str, Any] | None
    payload: str | None


class DeadLetterDeleted(BaseModel):
    id: str
    object: Literal["dead_letter"] = "dead_letter"
    deleted: bool = True


@ROUTER.get("", response_model=ListObject[DeadLetter])
async def list_dead_letters(
    caller: CallerOf, tenant: TenantQuery = None, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Dead letters, refused last first."""
    letters, more = await caller.gateway.letters.page(
        caller.principal, tenant or caller.tenant, page_size(limit), _checked(caller, after)
    )
    return page_of([_dead_letter(letter) for letter in letters], more)


@ROUTER.get("/{letter_id}", response_model=DeadLetter)
async def get_dead_letter(
    letter_id: str, caller: CallerOf, tenant: TenantQuery = None
) -> DeadLetter:
    return _dead_letter(
        await caller.gateway.letters.get(
            caller.principal, tenant or caller.tenant, _checked(caller, letter_id)
        )
    )


@ROUTER.post("/{letter_id}/replay", response_model=DeadLetter)
async def replay_dead_letter(
    letter_id: str, caller: CallerOf, tenant: TenantQuery = None
) -> DeadLetter:
    """Deliver the fact again to the stage that refused it, and to that one alone.

    The letter goes when the stage has handled it; else it stays, with the new reason.
    """
    return _dead_letter(
        await caller.gateway.letters.replay(
            caller.principal, tenant or caller.tenant, _checked(caller, letter_id)
        )
    )


@ROUTER.delete("/{letter_id}", response_model=DeadLetterDeleted)
async def delete_dead_letter(
    letter_id: str, caller: CallerOf, tenant: TenantQuery = None
) -> DeadLetterDeleted:
    """Give a fact up: its stage will never handle it. It stays in the history."""
    await caller.gateway.letters.delete(
        caller.principal, tenant or caller.tenant, _checked(caller, letter_id)
    )
    return DeadLetterDeleted(id=letter_id)


def _checked(caller: CallerOf, identifier: str | None) -> str:
    """An id that can be a letter's, and no wildcard of NATS's."""
    if identifier:
        caller.name("dead_letters", identifier, "dead letter")
    return identifier or ""


def _dead_letter(shown: Shown) -> DeadLetter:
    letter = shown.letter
    event = _event(letter.payload)
    return DeadLetter(
        id=letter.id,
        tenant=letter.tenant,
        status="replaying" if shown.is_replaying else "refused",
        consumer=letter.consumer,
        fact=letter.fact,
        subject=letter.subject,
        error=Failure(code=letter.error, message=letter.reason),
        deliveries=letter.deliveries,
        created_at=int(letter.time.timestamp()),
        event=event,
        payload=letter.payload.decode(errors="replace") if event is None else None,
    )


def _event(payload: bytes) -> dict[str, Any] | None:
    try:
        document = orjson.loads(payload)  # stricter than what came: it must be sent as JSON again
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None
