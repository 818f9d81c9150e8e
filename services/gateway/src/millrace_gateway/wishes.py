"""Versions that clients ask for by a checkpoint's step: which the registry is to keep loaded.

Pure but for its clock: ``serving.py``'s loop tells the registry, and what the registry answered.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

RENEW_SECONDS = 5.0
"""The registry lets nobody's wish make room for another that was renewed within twice this."""


@dataclass(frozen=True)
class Wish:
    """One version of a model."""

    tenant: str
    model: str
    version: int

    @property
    def name(self) -> str:
        return f"tenants/{self.tenant}/models/{self.model}/versions/{self.version}"


@dataclass
class Wishes:
    """Each is told to the registry at once, and again while it is wished for.

    Attributes:
        changed: set when there is something to tell.
    """

    monotonic: Callable[[], float] = time.monotonic
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _told: dict[Wish, float] = field(default_factory=dict)
    _untold: set[Wish] = field(default_factory=set)
    _refusals: dict[Wish, str] = field(default_factory=dict)

    def add(self, wish: Wish) -> None:
        """A client asks for the version."""
        if self.monotonic() - self._told.get(wish, float("-inf")) >= RENEW_SECONDS:
            self._untold.add(wish)
            self.changed.set()

    def take(self) -> Sequence[Wish]:
        """What is to be told now; each counts as told."""
        taken, self._untold = sorted(self._untold, key=lambda wish: wish.name), set()
        now = self.monotonic()
        self._told = {w: at for w, at in self._told.items() if now - at < RENEW_SECONDS}
        self._told.update(dict.fromkeys(taken, now))
        self.changed.clear()
        return taken

    def granted(self, wish: Wish) -> None:
        self._refusals.pop(wish, None)

    def refused(self, wish: Wish, reason: str) -> None:
        """The next request tells the registry again."""
        self._refusals[wish] = reason
        self._told.pop(wish, None)

    def unheard(self, wish: Wish) -> None:
        """The registry did not answer; the next request tells it again."""
        self._told.pop(wish, None)

    def refusal(self, wish: Wish) -> str:
        """Why the registry does not load a version; empty when it did not say no."""
        return self._refusals.get(wish, "")
