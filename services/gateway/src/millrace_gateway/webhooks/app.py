"""Use cases of webhooks: what a tenant can do with its endpoints."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import orjson

from millrace_gateway.webhooks import event
from millrace_gateway.webhooks.deliver import USER_AGENT
from millrace_gateway.webhooks.destination import Refused
from millrace_gateway.webhooks.domain import (
    Answer,
    Change,
    Delivery,
    Endpoint,
    Secret,
    Status,
    Wish,
)
from millrace_gateway.webhooks.post import Poster
from millrace_gateway.webhooks.signing import KeyMismatch, SigningKey
from millrace_runtime import names, paging
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.manifest import sha256_bytes

CHECK_SECONDS = 10.0


class Store(Protocol):
    """Where endpoints are kept; ``store.WebhookStore`` is one."""

    def add(
        self, tenant: str, wish: Wish, secret: Secret, request_id: str, digest: str
    ) -> Endpoint: ...

    def get(self, tenant: str, endpoint_id: str) -> Endpoint | None: ...

    def page(self, tenant: str, size: int, before_id: str) -> Sequence[Endpoint]: ...

    def change(self, tenant: str, endpoint_id: str, change: Change) -> Endpoint | None: ...

    def rotate(
        self, tenant: str, endpoint_id: str, secret: Secret, keeps_old: bool
    ) -> Endpoint | None: ...

    def remove(self, tenant: str, endpoint_id: str) -> bool: ...

    def deliveries(
        self, endpoint_id: str, status: Status | None, size: int, before_id: str
    ) -> Sequence[Delivery]: ...

    def delivery(self, endpoint_id: str, delivery_id: str) -> tuple[Delivery, str] | None: ...

    def redeliver(self, endpoint_id: str, delivery_id: str) -> bool: ...


class Webhooks:
    """Makes, changes, tries and deletes endpoints, and shows what was delivered to them.

    Methods that name an endpoint or a delivery raise NotFound when the tenant has none of that
    id.

    Args:
        ring: says that a delivery is due.
    """

    def __init__(
        self,
        store: Store,
        poster: Poster,
        key: SigningKey,
        ring: Callable[[], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._poster = poster
        self._key = key
        self._ring = ring
        self._now = now

    async def create(self, tenant: str, wish: Wish, request_id: str) -> tuple[Endpoint, str]:
        """A new endpoint, and its secret. The same request sent twice is told the same one.

        Raises:
            InvalidArgument: the URL may not be posted to, or there is no such type of event.
            AlreadyExists: the request id was used for another endpoint.
            FailedPrecondition: the tenant has as many as it may have.
        """
        event.check_patterns(wish.patterns)
        await self._check_url(wish.url)
        asked = orjson.dumps([wish.name, wish.url, list(wish.patterns), wish.is_enabled])
        digest = sha256_bytes(asked)
        secret = self._key.new_secret()
        found = await asyncio.to_thread(self._store.add, tenant, wish, secret, request_id, digest)
        self._ring()
        return found, self._secret_text(found)

    async def get(self, tenant: str, endpoint_id: str) -> Endpoint:
        return _found(await asyncio.to_thread(self._store.get, tenant, endpoint_id), endpoint_id)

    async def page(
        self, tenant: str, size: int, page_token: str
    ) -> tuple[Sequence[Endpoint], bool]:
        """Endpoints, newest first, and whether there are more.

        Raises:
            InvalidArgument: the token is none of ours.
        """
        before = paging.decode_token(page_token)
        found = await asyncio.to_thread(self._store.page, tenant, size + 1, before)
        return found[:size], len(found) > size

    async def change(self, tenant: str, endpoint_id: str, change: Change) -> Endpoint:
        """
        Raises:
            InvalidArgument: the URL may not be posted to, or there is no such type of event.
        """
        event.check_patterns(change.patterns or ())
        if change.url is not None:
            await self._check_url(change.url)
        changed = await asyncio.to_thread(self._store.change, tenant, endpoint_id, change)
        return _found(changed, endpoint_id)

    async def rotate(self, tenant: str, endpoint_id: str, keeps_old: bool) -> tuple[Endpoint, str]:
        """Another secret; those before it stay good for a day, or end now."""
        secret = self._key.new_secret()
        rotated = await asyncio.to_thread(
            self._store.rotate, tenant, endpoint_id, secret, keeps_old
        )
        found = _found(rotated, endpoint_id)
        return found, self._secret_text(found)

    async def remove(self, tenant: str, endpoint_id: str) -> None:
        if not await asyncio.to_thread(self._store.remove, tenant, endpoint_id):
            raise no_such_endpoint(endpoint_id)

    async def test(self, tenant: str, endpoint_id: str, kind: str) -> Answer:
        """Post a sample event now, once, and tell how it was answered; it has no history.

        Raises:
            InvalidArgument: there is no such type of event.
            FailedPrecondition: there was no answer.
        """
        endpoint = await self.get(tenant, endpoint_id)
        now = self._now()
        body = event.sample(kind, now).encode()
        try:
            signed = self._key.headers(endpoint, names.new_id("whd"), body, now)
        except KeyMismatch as error:
            raise FailedPrecondition(str(error), reason="WEBHOOK_KEY_CHANGED") from None
        headers = {"content-type": "application/json", "user-agent": USER_AGENT, **signed}
        answer = await self._poster.post(endpoint.url, headers, body)
        if answer.status_code is None:
            raise FailedPrecondition(
                f"the endpoint did not answer: {answer.error}", reason="WEBHOOK_UNREACHABLE"
            )
        return answer

    async def deliveries(
        self, tenant: str, endpoint_id: str, status: Status | None, size: int, page_token: str
    ) -> tuple[Sequence[Delivery], bool]:
        """Deliveries with their attempts, newest first, and whether there are more.

        Raises:
            InvalidArgument: the token is none of ours.
        """
        before = paging.decode_token(page_token)
        await self.get(tenant, endpoint_id)
        found = await asyncio.to_thread(
            self._store.deliveries, endpoint_id, status, size + 1, before
        )
        return found[:size], len(found) > size

    async def delivery(
        self, tenant: str, endpoint_id: str, delivery_id: str
    ) -> tuple[Delivery, str]:
        """A delivery, and the event that it carries, in JSON."""
        await self.get(tenant, endpoint_id)
        found = await asyncio.to_thread(self._store.delivery, endpoint_id, delivery_id)
        if found is None:
            raise no_such_delivery(delivery_id)
        return found

    async def redeliver(
        self, tenant: str, endpoint_id: str, delivery_id: str
    ) -> tuple[Delivery, str]:
        """Begin anew with a delivery, with the same id.

        Raises:
            FailedPrecondition: the endpoint is disabled.
            Aborted: an attempt is under way.
        """
        await self.get(tenant, endpoint_id)
        if not await asyncio.to_thread(self._store.redeliver, endpoint_id, delivery_id):
            raise no_such_delivery(delivery_id)
        self._ring()
        return await self.delivery(tenant, endpoint_id, delivery_id)

    def secret_hint(self, endpoint: Endpoint) -> str | None:
        """Enough of the secret to tell it from others."""
        return self._key.hint(endpoint.secrets[0])

    def _secret_text(self, endpoint: Endpoint) -> str:
        try:
            return self._key.text(endpoint.secrets[0])
        except KeyMismatch as error:
            raise FailedPrecondition(str(error), reason="WEBHOOK_KEY_CHANGED") from None

    async def _check_url(self, url: str) -> None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._poster.destinations.check(url)
        except (Refused, TimeoutError) as error:
            reason = str(error) or "its host cannot be resolved in time"
            raise InvalidArgument(
                f"Invalid value for 'url': {reason}.", reason="INVALID_URL", field="url"
            ) from None


def no_such_endpoint(endpoint_id: str) -> NotFound:
    return NotFound(f"No such webhook endpoint: {endpoint_id!r}", field="")


def no_such_delivery(delivery_id: str) -> NotFound:
    return NotFound(f"No such delivery: {delivery_id!r}", field="")


def _found(endpoint: Endpoint | None, endpoint_id: str) -> Endpoint:
    if endpoint is None:
        raise no_such_endpoint(endpoint_id)
    return endpoint
