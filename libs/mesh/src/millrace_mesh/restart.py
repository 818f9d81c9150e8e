"""When something that ended is started again: exponential back-off that forgets (pure)."""

from dataclasses import dataclass

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 15.0
LONGEST_DELAY_AFTER_READY_SECONDS = 1.0
STABLE_SECONDS = 30.0


@dataclass(frozen=True)
class Backoff:
    """How many ends came in quick succession; a new value after each."""

    quick_ends: int = 0

    def after_end(self, lived_seconds: float, was_ready: bool = False) -> tuple["Backoff", float]:
        """The value after one more end, and the delay in seconds before the next start.

        Whoever lived for ``STABLE_SECONDS`` is forgiven what came before. Whoever was ready can
        start; something ended it, and others wait for it, so it is not kept waiting for long.
        """
        earlier = 0 if lived_seconds >= STABLE_SECONDS else self.quick_ends
        longest = LONGEST_DELAY_AFTER_READY_SECONDS if was_ready else LONGEST_DELAY_SECONDS
        delay = min(FIRST_DELAY_SECONDS * 2**earlier, longest)
        return Backoff(earlier + 1), delay
