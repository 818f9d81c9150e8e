"""``/v1/webhook_endpoints``: where a tenant wants events to be posted, as the OpenAI API has it.

The ``openai`` package's ``webhooks`` works unchanged; deliveries are Millrace's own.
Reference: https://platform.openai.com/docs/guides/webhooks
"""

from typing import Annotated, Any, Literal

import orjson
from fastapi import Query
from pydantic import BaseModel, Field

from millrace_gateway.rest.caller import Caller, CallerOf
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
from millrace_gateway.webhooks.domain import Attempt, Change, Delivery, Endpoint, Status, Wish
from millrace_gateway.webhooks.event import TYPES
from millrace_runtime.errors import InvalidArgument

ROUTER = router("webhooks", "/v1")

_ENDPOINTS = "/webhook_endpoints"
_ENDPOINT = f"{_ENDPOINTS}/{{endpoint_id}}"
_DELIVERY = f"{_ENDPOINT}/deliveries/{{delivery_id}}"

Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
EventType = Annotated[str, Field(min_length=1, max_length=128)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=100)]
StatusWord = Literal["pending", "delivered", "failed"]


class CreateEndpoint(RequestBody):
    """``event_types`` may hold patterns too: ``fine_tuning.job.*``, ``*``."""

    name: Name
    url: str
    event_types: EventTypes
    enabled: bool = True


class UpdateEndpoint(RequestBody):
    """What is not given stays as it is."""

    name: Name | None = None
    url: str | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = None


class RotateSecret(RequestBody):
    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(RequestBody):
    event_type: EventType


class EndpointObject(BaseModel):
    """``disabled_reason`` says why nothing is posted, where that is so."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[str]
    enabled: bool
    disabled_reason: str | None
    disabled_at: int | None
    signing_secret_hint: str | None
    created_at: int
    updated_at: int


class EndpointWithSecret(EndpointObject):
    """``signing_secret`` is shown this once."""

    signing_secret: str


class EndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(BaseModel):
    """How the endpoint answered a sample, whatever the answer was."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class AttemptObject(BaseModel):
    """One request; ``status_code`` is null, and ``error`` says why, when there was no answer."""

    number: int
    attempted_at: int
    duration_seconds: float
    status_code: int | None
    error: str | None
    response_body: str = Field(description="How the answer's body began.")


class DeliveryObject(BaseModel):
    """An event for an endpoint; ``id`` is the ``webhook-id`` of all its attempts."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    event_id: str
    event_type: str
    status: StatusWord
    created_at: int
    next_attempt_at: int | None
    attempts: list[AttemptObject]


class DeliveryWithEvent(DeliveryObject):
    event: dict[str, Any] = Field(description="What is posted.")


@ROUTER.get("/webhook_event_types", response_model=EventTypeList)
async def list_event_types(caller: CallerOf) -> EventTypeList:
    """Every type of event that can be posted."""
    return EventTypeList(data=list(TYPES))


@ROUTER.post(_ENDPOINTS, response_model=EndpointWithSecret)
async def create_endpoint(body: CreateEndpoint, caller: CallerOf) -> EndpointWithSecret:
    """Have events posted from now on. The secret that verifies them is shown this once."""
    wish = Wish(body.name, body.url, _distinct(body.event_types), body.enabled)
    webhooks = caller.gateway.webhooks
    endpoint, secret = await webhooks.create(caller.tenant, wish, caller.request_id)
    return EndpointWithSecret(**_fields(caller, endpoint), signing_secret=secret)


@ROUTER.get(_ENDPOINTS, response_model=ListObject[EndpointObject])
async def list_endpoints(
    caller: CallerOf, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """Endpoints, newest first."""
    found, has_more = await caller.gateway.webhooks.page(
        caller.tenant, page_size(limit), token_after(after)
    )
    return page_of([EndpointObject(**_fields(caller, one)) for one in found], has_more)


@ROUTER.get(_ENDPOINT, response_model=EndpointObject)
async def get_endpoint(endpoint_id: str, caller: CallerOf) -> EndpointObject:
    _check_id(caller, endpoint_id)
    endpoint = await caller.gateway.webhooks.get(caller.tenant, endpoint_id)
    return EndpointObject(**_fields(caller, endpoint))


@ROUTER.post(_ENDPOINT, response_model=EndpointObject)
async def update_endpoint(
    endpoint_id: str, body: UpdateEndpoint, caller: CallerOf
) -> EndpointObject:
    """Change an endpoint. Disabled, it fails what is pending; enabled, it gets what comes then."""
    _check_id(caller, endpoint_id)
    patterns = None if body.event_types is None else _distinct(body.event_types)
    change = Change(body.name, body.url, patterns, body.enabled)
    if change == Change():
        raise InvalidArgument("give at least one of name, url, event_types and enabled to change")
    endpoint = await caller.gateway.webhooks.change(caller.tenant, endpoint_id, change)
    return EndpointObject(**_fields(caller, endpoint))


@ROUTER.delete(_ENDPOINT, response_model=EndpointDeleted)
async def delete_endpoint(endpoint_id: str, caller: CallerOf) -> EndpointDeleted:
    """Post nothing any more, and forget what was posted."""
    _check_id(caller, endpoint_id)
    await caller.gateway.webhooks.remove(caller.tenant, endpoint_id)
    return EndpointDeleted(id=endpoint_id)


@ROUTER.post(f"{_ENDPOINT}/rotate_secret", response_model=EndpointWithSecret)
async def rotate_secret(
    endpoint_id: str, caller: CallerOf, body: RotateSecret | None = None
) -> EndpointWithSecret:
    """Sign with another secret; with both, for a day, if the old one is to be kept so long."""
    _check_id(caller, endpoint_id)
    keeps_old = body is not None and body.keep_old_secret_active_for_24_hours
    endpoint, secret = await caller.gateway.webhooks.rotate(caller.tenant, endpoint_id, keeps_old)
    return EndpointWithSecret(**_fields(caller, endpoint), signing_secret=secret)


@ROUTER.post(f"{_ENDPOINT}/test", response_model=TestResult)
async def test_endpoint(endpoint_id: str, body: TestEndpoint, caller: CallerOf) -> TestResult:
    """Post a sample event now, once, enabled or not, and tell how it was answered."""
    _check_id(caller, endpoint_id)
    answer = await caller.gateway.webhooks.test(caller.tenant, endpoint_id, body.event_type)
    assert answer.status_code is not None, "what was not answered is raised"
    return TestResult(
        webhook_endpoint_id=endpoint_id,
        event_type=body.event_type,
        status_code=answer.status_code,
    )


@ROUTER.get(f"{_ENDPOINT}/deliveries", response_model=ListObject[DeliveryObject])
async def list_deliveries(
    endpoint_id: str,
    caller: CallerOf,
    status: Annotated[StatusWord | None, Query(description="Only those that are so.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """What was and is to be posted, newest first, with every attempt."""
    _check_id(caller, endpoint_id)
    found, has_more = await caller.gateway.webhooks.deliveries(
        caller.tenant,
        endpoint_id,
        Status(status) if status else None,
        page_size(limit),
        token_after(after),
    )
    return page_of([DeliveryObject(**_delivery_fields(one)) for one in found], has_more)


@ROUTER.get(_DELIVERY, response_model=DeliveryWithEvent)
async def get_delivery(endpoint_id: str, delivery_id: str, caller: CallerOf) -> DeliveryWithEvent:
    _check_id(caller, endpoint_id)
    caller.name("deliveries", delivery_id, "delivery")
    webhooks = caller.gateway.webhooks
    return _with_event(*await webhooks.delivery(caller.tenant, endpoint_id, delivery_id))


@ROUTER.post(f"{_DELIVERY}/redeliver", response_model=DeliveryWithEvent)
async def redeliver(endpoint_id: str, delivery_id: str, caller: CallerOf) -> DeliveryWithEvent:
    """Post an event again, at once, with the same ``webhook-id``; if need be with all retries."""
    _check_id(caller, endpoint_id)
    caller.name("deliveries", delivery_id, "delivery")
    webhooks = caller.gateway.webhooks
    return _with_event(*await webhooks.redeliver(caller.tenant, endpoint_id, delivery_id))


def _check_id(caller: Caller, endpoint_id: str) -> None:
    caller.name("webhook_endpoints", endpoint_id, "webhook endpoint")


def _distinct(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _fields(caller: Caller, endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": [one.pattern for one in endpoint.subscribed],
        "enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disable_reason,
        "disabled_at": int(endpoint.disable_time.timestamp()) if endpoint.disable_time else None,
        "signing_secret_hint": caller.gateway.webhooks.secret_hint(endpoint),
        "created_at": int(endpoint.create_time.timestamp()),
        "updated_at": int(endpoint.update_time.timestamp()),
    }


def _delivery_fields(delivery: Delivery) -> dict[str, Any]:
    due = delivery.next_attempt_time
    return {
        "id": delivery.id,
        "webhook_endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "event_type": delivery.kind,
        "status": delivery.status.value,
        "created_at": int(delivery.create_time.timestamp()),
        "next_attempt_at": int(due.timestamp()) if due else None,
        "attempts": [_attempt(one) for one in delivery.attempts],
    }


def _with_event(delivery: Delivery, document: str) -> DeliveryWithEvent:
    return DeliveryWithEvent(**_delivery_fields(delivery), event=orjson.loads(document))


def _attempt(attempt: Attempt) -> AttemptObject:
    return AttemptObject(
        number=attempt.number,
        attempted_at=int(attempt.time.timestamp()),
        duration_seconds=round(attempt.duration_seconds, 3),
        status_code=attempt.status_code,
        error=attempt.error,
        response_body=attempt.response_body,
    )
