"""Lifting a recall, inside the caller's transaction: what it alone kept out may be rolled out.

Nothing serves by that: a version that served is RETIRED and says why, so that it is nobody's
successor, and waits for a rollout.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, select, update

from millrace.registry.v1 import events_pb2
from millrace_registry import recall_rows
from millrace_registry.domain import Version, VersionState
from millrace_registry.recall import Met, Outcome, Recall
from millrace_registry.recall_effects import Effects
from millrace_registry.schema import RECALL_VERSIONS, RECALLS, VERSIONS
from millrace_registry.transitions import RecordFact, read_version

_TAKEN_OUT = (Outcome.QUARANTINED.value, Outcome.ROLLED_BACK.value)


@dataclass(frozen=True)
class Release:
    """What one recall, which does not stand any more, leaves of the versions that it has met."""

    connection: Connection
    recall: Recall
    record: RecordFact
    now: datetime

    def of(self, met: Iterable[Met]) -> None:
        """Release them, and say so. Those against which another recall stands it takes over."""
        freed = [found for one in met if (found := self._freed(one)) is not None]
        for version in freed:
            self._say_released(version)
        lifted = events_pb2.RecallLifted(
            recall=self.recall.name,
            reason=self.recall.lift_reason,
            versions=[version.name for version in freed],
        )
        self.record(self.connection, self.recall.tenant, lifted, self.recall.traceparent)

    def _freed(self, met: Met) -> Version | None:
        """The version, if it may be rolled out now, and might not before."""
        version = read_version(self.connection, self.recall.tenant, met.model, met.number)
        assert version is not None, "versions are never removed"
        other = recall_rows.standing_against(self.connection, version.tenant, [version.name])
        if other is not None:
            self._hand_over(version, other)
            return None
        if version.state_reason == self.recall.why:
            version = self._restored(version)
        was_out = met.outcome not in (Outcome.REPORTED, Outcome.NO_SUCCESSOR)
        return version if was_out and _may_be_rolled_out(version) else None

    def _hand_over(self, version: Version, other: Recall) -> None:
        """Of several recalls that stood against it the strictest has met it, and may be alone."""
        known = {(met.model, met.number) for met in recall_rows.met_by(self.connection, other)}
        if (version.model, version.number) not in known:
            met = Effects(self.connection, other, self.record, self.now).on([version])
            recall_rows.add_met(self.connection, other, met)
        self._write(version, state_reason=other.why)

    def _restored(self, version: Version) -> Version:
        """As it was before it was recalled, but that it does not serve."""
        state_before, reason = self._before(version)
        state = version.state
        if state == VersionState.QUARANTINED:
            is_new = state_before == VersionState.REGISTERED and version.retire_time is None
            state = VersionState.REGISTERED if is_new else VersionState.RETIRED
        if state == VersionState.RETIRED:
            reason = reason or f"{self.recall.id} was lifted: a rollout lets it serve again"
            retire_time = version.retire_time or self.recall.create_time
            version = replace(version, retire_time=retire_time)
        changed = replace(version, state=state, state_reason=reason)
        written = {"state": state.value, "state_reason": reason}
        self._write(version, **written, retire_time=changed.retire_time)
        return changed

    def _before(self, version: Version) -> tuple[VersionState, str]:
        """The state in which the last recall that took it out met it, and the reason of that."""
        query = (
            select(RECALL_VERSIONS.c.state_before, RECALL_VERSIONS.c.reason_before)
            .join(RECALLS, RECALLS.c.id == RECALL_VERSIONS.c.recall)
            .where(RECALLS.c.tenant == version.tenant)
            .where(RECALL_VERSIONS.c.model == version.model)
            .where(RECALL_VERSIONS.c.number == version.number)
            .where(RECALL_VERSIONS.c.outcome.in_(_TAKEN_OUT))
            .order_by(RECALLS.c.create_time.desc(), RECALLS.c.id.desc())
        )
        row = self.connection.execute(query.limit(1)).one()
        return VersionState(row.state_before), row.reason_before or ""

    def _write(self, version: Version, **values: object) -> None:
        """Unless it is kept out for a reason of its own by now."""
        statement = update(VERSIONS).where(
            VERSIONS.c.tenant == version.tenant,
            VERSIONS.c.model == version.model,
            VERSIONS.c.number == version.number,
            VERSIONS.c.state_reason == self.recall.why,
        )
        self.connection.execute(statement.values(**values))

    def _say_released(self, version: Version) -> None:
        fact = events_pb2.VersionReleased(
            version=version.name,
            model=version.model,
            recall=self.recall.name,
            reason=self.recall.lift_reason,
        )
        self.record(self.connection, version.tenant, fact, self.recall.traceparent)


def _may_be_rolled_out(version: Version) -> bool:
    if version.state == VersionState.REGISTERED:
        return not version.state_reason
    return version.state == VersionState.RETIRED
