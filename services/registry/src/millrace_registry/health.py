"""What the controller remembers of the versions that it looks after, between two looks."""

from dataclasses import dataclass, field

from millrace_registry.traffic import Traffic


@dataclass
class Health:
    """What is known of a version on Triton.

    Attributes:
        answered_at: monotonic seconds of its last answer; 0 before the first.
        failed_checks: questions in a row that it did not answer.
        error: why it cannot serve; empty while it may.
        retry_at: monotonic seconds before which it is not loaded again.
    """

    answered_at: float = 0.0
    failed_checks: int = 0
    error: str = ""
    retry_at: float = 0.0


@dataclass
class Asked:
    """The controller's own questions, counted as a gateway counts its requests."""

    counters: dict[tuple[str, str, int], Traffic] = field(default_factory=dict)

    def count(self, key: tuple[str, str, int], failed: bool) -> None:
        before = self.counters.get(key, Traffic())
        self.counters[key] = Traffic(before.requests + 1, before.failures + int(failed))
