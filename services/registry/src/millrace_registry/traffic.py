"""What has been seen of versions: sums that only grow, and their differences."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Requests to a version that have ended, and those of them that the engine failed.

    ``timed``: whole answers to clients; ``tokens`` and ``first_token_seconds`` are their sums.
    """

    requests: int = 0
    failures: int = 0
    tokens: int = 0
    timed: int = 0
    first_token_seconds: float = 0.0

    def since(self, earlier: "Traffic") -> "Traffic":
        return Traffic(**{name: getattr(self, name) - was for name, was in vars(earlier).items()})

    @property
    def failure_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    @property
    def mean_first_token_seconds(self) -> float:
        """0 when no answer was timed."""
        return self.first_token_seconds / self.timed if self.timed else 0.0


@dataclass(frozen=True)
class Comparison:
    """Answers to mirrored requests beside those that clients got (``service.proto``:
    ShadowAnswers). ``agreement`` is a sum: of the part of the longer text with which both begin."""

    compared: int = 0
    agreement: float = 0.0
    truncated: int = 0
    failed: int = 0
    old_tokens: int = 0
    new_tokens: int = 0

    def since(self, earlier: "Comparison") -> "Comparison":
        return Comparison(
            **{name: getattr(self, name) - was for name, was in vars(earlier).items()}
        )


@dataclass(frozen=True)
class Seen:
    """What has been seen of a rollout's two versions."""

    new: Traffic = Traffic()
    old: Traffic = Traffic()
    shadow: Comparison = Comparison()

    def since(self, earlier: "Seen") -> "Seen":
        return Seen(
            self.new.since(earlier.new),
            self.old.since(earlier.old),
            self.shadow.since(earlier.shadow),
        )
