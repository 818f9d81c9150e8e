"""Calls of an engine that has died without a word."""

import asyncio
from typing import Any

from millrace_gateway.triton import EngineFailed


class Watch:
    """Cancels a call that falls silent: a killed engine process leaves its streams hanging.

    One timer a call; a message only notes its time.

    Attributes:
        reason: for which the call was given up, if it was.
    """

    def __init__(self, call: Any, silence_seconds: float) -> None:
        self._call = call
        self._silence_seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        self._last_seconds = self._loop.time()
        self.reason: Exception | None = None
        self._timer = self._loop.call_later(silence_seconds, self._look)

    def heard(self) -> None:
        self._last_seconds = self._loop.time()

    def check(self) -> None:
        """Raise the reason for which the call was given up, if it was."""
        if self.reason is not None:
            raise self.reason

    def give_up(self, reason: Exception) -> None:
        self.reason = reason
        self._call.cancel()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        due_seconds = self._last_seconds + self._silence_seconds
        if self._loop.time() < due_seconds:
            self._timer = self._loop.call_at(due_seconds, self._look)
        else:
            self.give_up(EngineFailed(f"the engine was silent for {self._silence_seconds:g} s"))
