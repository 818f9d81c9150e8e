"""One connection to NATS over time: it is lost, and comes back by itself.

The client keeps what it could not send for the next life of the connection. But an answer that
is awaited while the connection is lost never comes, and the client says so only at a timeout.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from nats.aio.client import Client

Answer = TypeVar("Answer")

_LOOK_SECONDS = 0.1


class Connection:
    """A client, its JetStream context, and the present life of its connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.jetstream = client.jetstream()

    @property
    def life(self) -> int:
        """Another number after each reconnection."""
        return int(self.client.stats["reconnects"])

    async def until_connected(self) -> None:
        while not self.client.is_connected:
            await asyncio.sleep(_LOOK_SECONDS)

    async def unbroken(self, call: Awaitable[Answer]) -> Answer:
        """What ``call`` returns, if the connection lasts until then.

        Raises:
            ConnectionResetError: it did not; the call is cancelled.
        """
        begun_in = self.life
        answer = asyncio.ensure_future(call)
        try:
            while not answer.done():
                if not self.client.is_connected or self.life != begun_in:
                    raise ConnectionResetError("the connection to NATS was lost")
                await asyncio.wait({answer}, timeout=_LOOK_SECONDS)
            return answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
