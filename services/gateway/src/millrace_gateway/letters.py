"""The tenants' dead letters, over the gateway's connection to NATS.

A caller sees those of its own tenant; an operator may name another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client

from millrace_gateway.domain import Principal
from millrace_runtime.dead_letters import DeadLetters, Letter
from millrace_runtime.errors import PermissionDenied, Unavailable


@dataclass(frozen=True)
class Shown:
    """A letter, and whether it is on its way back to the stage that refused it."""

    letter: Letter
    is_replaying: bool

    @property
    def id(self) -> str:
        return self.letter.id


class Letters:
    """Shows, replays and gives up letters.

    Every method raises PermissionDenied when the tenant is not the caller's and the caller is
    no operator, and Unavailable when NATS cannot be reached; those that name a letter raise
    NotFound when the tenant has none of that id.
    """

    def __init__(self) -> None:
        self._client: Client | None = None

    def attach(self, client: Client) -> None:
        """Say through which connection to ask, once there is one."""
        self._client = client

    async def page(
        self, principal: Principal, tenant: str, limit: int, after: str
    ) -> tuple[Sequence[Shown], bool]:
        """Letters, refused last first, and whether there are more after them.

        Raises:
            InvalidArgument: there is no letter ``after``.
        """
        with self._asking(principal, tenant) as letters:
            found, more = await letters.page(tenant, limit, after)
            replaying = await letters.replaying(tenant)
            return [Shown(letter, letter.id in replaying) for letter in found], more

    async def get(self, principal: Principal, tenant: str, identifier: str) -> Shown:
        with self._asking(principal, tenant) as letters:
            letter = await letters.get(tenant, identifier)
            return Shown(letter, letter.id in await letters.replaying(tenant))

    async def replay(self, principal: Principal, tenant: str, identifier: str) -> Shown:
        """Give a letter back to its stage. Twice is as once."""
        with self._asking(principal, tenant) as letters:
            return Shown(await letters.replay(tenant, identifier), is_replaying=True)

    async def delete(self, principal: Principal, tenant: str, identifier: str) -> None:
        with self._asking(principal, tenant) as letters:
            await letters.delete(tenant, identifier)

    @contextmanager
    def _asking(self, principal: Principal, tenant: str) -> Iterator[DeadLetters]:
        if tenant != principal.tenant and not principal.is_operator:
            raise PermissionDenied(
                "only an operator's key may see another tenant's dead letters",
                reason="OPERATOR_KEY_REQUIRED",
            )
        if self._client is None or not self._client.is_connected:
            raise _unavailable()
        try:
            yield DeadLetters(self._client.jetstream())
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise _unavailable() from error


def _unavailable() -> Unavailable:
    return Unavailable("dead letters cannot be reached now; try again", reason="EVENTS_UNAVAILABLE")
