"""SIGTERM, as a wish that is granted between two steps and never amid a write."""

import signal
from types import FrameType

from millrace_runtime.jobs import JobError


class Cancellation:
    """Remembers that this process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Take SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def raise_if_requested(self) -> None:
        """
        Raises:
            JobError: CANCELLED, once SIGTERM has come.
        """
        if self.requested:
            message = "stopped on request; started again, it goes on from its last state"
            raise JobError("CANCELLED", message)
