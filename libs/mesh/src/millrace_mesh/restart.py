"""When something that ended is started again: exponential back-off that forgets (pure)."""

from dataclasses import dataclass

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 15.0
STABLE_SECONDS = 30.0


@dataclass(frozen=True)
class Backoff:
    """How many ends came in quick succession; a new value after each."""

    quick_ends: int = 0

    def after_end(self, lived_seconds: float) -> tuple["Backoff", float]:
        """The value after one more end, and the delay in seconds before the next start.

        Whoever lived for ``STABLE_SECONDS`` is forgiven what came before.
        """
        earlier = 0 if lived_seconds >= STABLE_SECONDS else self.quick_ends
        delay = min(FIRST_DELAY_SECONDS * 2**earlier, LONGEST_DELAY_SECONDS)
        return Backoff(earlier + 1), delay
