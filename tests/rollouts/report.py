"""What a run has shown, as a table and as JSON, and whether it is as promised."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from millrace_registry.domain import RolloutState
from tests.chaos.outcome import percentile
from tests.rollouts.trial import MINIMUM_REQUESTS, Tried

IN_TIME_SECONDS = 5.0
_LEAST_IN_TIME = 0.99
_MOST_FALSE_ALARMS = 0.02


@dataclass(frozen=True)
class Row:
    """Of the rollouts of one kind.

    Attributes:
        in_time: reversed within ``IN_TIME_SECONDS`` of enough evidence.
        late_seconds_p50, late_seconds_p99: from enough evidence to the reversal.
    """

    kind: str
    tried: int
    reversed: int
    in_time: int
    settled: int
    unended: int
    late_seconds_p50: float
    late_seconds_p99: float


@dataclass(frozen=True)
class Report:
    rows: Sequence[Row]
    planted: int
    caught_in_time: int
    promoted_bad: int
    promoted_on_no_data: int
    same: int
    false_reversals: int
    requests: int
    failed_requests: int
    failures: Sequence[str]

    def faults(self) -> list[str]:
        """A sentence for each promise that was not kept."""
        found = []
        if self.caught_in_time < _LEAST_IN_TIME * self.planted:
            missed = self.planted - self.caught_in_time
            found.append(f"{missed} of {self.planted} bad versions were not reversed in time")
        if self.promoted_bad:
            found.append(f"{self.promoted_bad} bad versions were promoted")
        if self.promoted_on_no_data:
            found.append(f"{self.promoted_on_no_data} versions were promoted on no data")
        if self.false_reversals > max(1.0, _MOST_FALSE_ALARMS * self.same):
            found.append(f"{self.false_reversals} of {self.same} good versions were reversed")
        if self.failed_requests:
            failed = f"{self.failed_requests} of {self.requests} requests failed"
            found.append(f"{failed}: {self.failures[0]}")
        return found

    def table(self) -> str:
        lines = [
            f"{'version':<20}{'tried':>7}{'reversed':>10}{'in time':>9}{'settled':>9}"
            f"{'unended':>9}{'s, p50':>8}{'p99':>7}"
        ]
        lines += [
            f"{row.kind:<20}{row.tried:>7}{row.reversed:>10}{row.in_time:>9}{row.settled:>9}"
            f"{row.unended:>9}{row.late_seconds_p50:>8.1f}{row.late_seconds_p99:>7.1f}"
            for row in self.rows
        ]
        lines += [
            "",
            f"bad versions reversed within {IN_TIME_SECONDS:g} s of {MINIMUM_REQUESTS} answers of "
            f"both: {self.caught_in_time} of {self.planted}",
            f"bad versions promoted: {self.promoted_bad}; on no data: {self.promoted_on_no_data}",
            f"good versions reversed: {self.false_reversals} of {self.same}",
            f"failed requests of clients: {self.failed_requests} of {self.requests}",
        ]
        return "\n".join(lines)

    def write(self, path: Path, tried: Sequence[Tried]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {**asdict(self), "rollouts": [asdict(each) for each in tried]}
        path.write_text(json.dumps(document, indent=2) + "\n")


def report(
    tried: Sequence[Tried], requests: int, failed_requests: int, failures: Sequence[str]
) -> Report:
    bad = [each for each in tried if each.how.is_bad]
    same = [each for each in tried if not each.how.is_bad]
    kinds = list(dict.fromkeys(each.how.kind for each in [*bad, *same]))
    settled = [each for each in tried if each.state == RolloutState.SETTLED]
    return Report(
        rows=[_row(kind, [each for each in tried if each.how.kind == kind]) for kind in kinds],
        planted=len(bad),
        caught_in_time=sum(_is_in_time(each) for each in bad),
        promoted_bad=sum(each.how.is_bad for each in settled),
        promoted_on_no_data=sum(each.answers < MINIMUM_REQUESTS for each in settled),
        same=len(same),
        false_reversals=sum(each.state == RolloutState.REVERSED for each in same),
        requests=requests,
        failed_requests=failed_requests,
        failures=failures,
    )


def _row(kind: str, tried: Sequence[Tried]) -> Row:
    late = [each.late_seconds for each in tried if each.late_seconds is not None]
    return Row(
        kind=kind,
        tried=len(tried),
        reversed=sum(each.state == RolloutState.REVERSED for each in tried),
        in_time=sum(_is_in_time(each) for each in tried),
        settled=sum(each.state == RolloutState.SETTLED for each in tried),
        unended=sum(
            each.state not in (RolloutState.SETTLED, RolloutState.REVERSED) for each in tried
        ),
        late_seconds_p50=percentile(late, 0.5),
        late_seconds_p99=percentile(late, 0.99),
    )


def _is_in_time(tried: Tried) -> bool:
    late = tried.late_seconds
    return late is not None and late <= IN_TIME_SECONDS
