"""The REST server's end, which clients do not notice.

uvicorn closes idle connections as soon as it stops, and a request that is on its way on one of
them is lost. This server goes on answering on the connections it has, each answer closing its
own (``edge.py``), and closes those alone that stayed idle for longer than clients keep them.
"""

import asyncio
import contextlib
import socket
import time
from typing import Any

import uvicorn

# The openai and httpx clients take no connection again that was idle for 5 s.
_IDLE_SECONDS = 6.0
# Before a drain the server must never be the first to let go; 75 s is nginx's default.
_KEEP_ALIVE_SECONDS = 75
_POLL_SECONDS = 0.05
# From the end of the drain, when all that still runs is told so, to the end of the server.
_LAST_WORDS_SECONDS = 2


class RestServer(uvicorn.Server):
    """Serves ``app`` at ``address`` until ``should_exit``, then drains."""

    def __init__(self, app: Any, address: str, drain_seconds: float) -> None:
        host, port = address.rsplit(":", 1)
        config = uvicorn.Config(
            app,
            host=host,
            port=int(port),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        )
        super().__init__(config)
        self._drain_seconds = drain_seconds
        # uvicorn must not take the signals: stopping is the service's decision.
        self.capture_signals = contextlib.nullcontext  # type: ignore[assignment,method-assign]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        await self._drain()
        await super().shutdown()

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._drain_seconds
        idle_since: dict[Any, float] = {}
        while self.server_state.connections and time.monotonic() < deadline:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if not _is_idle(connection):
                    idle_since.pop(connection, None)
                elif now - idle_since.setdefault(connection, now) > _IDLE_SECONDS:
                    connection.shutdown()
            await asyncio.sleep(_POLL_SECONDS)


def _is_idle(connection: Any) -> bool:
    """Between two requests, or before the first."""
    return connection.cycle is None or bool(connection.cycle.response_complete)
