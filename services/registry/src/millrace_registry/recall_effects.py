"""Taking recalled versions out of service, inside the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from millrace.registry.v1 import events_pb2
from millrace_registry.domain import Version, VersionState
from millrace_registry.hold_store import held_now
from millrace_registry.recall import (
    Action,
    Key,
    Met,
    Outcome,
    Recall,
    is_live,
    is_recalls,
    key_of,
)
from millrace_registry.rollout_store import lock_unended
from millrace_registry.schema import MODELS
from millrace_registry.transitions import (
    RecordFact,
    quarantine_version,
    read_version,
    reverse_rollout,
    serve_instead,
    set_version_state,
    successor_of,
)


@dataclass(frozen=True)
class Effects:
    """What one recall does to versions, and the facts of it."""

    connection: Connection
    recall: Recall
    record: RecordFact
    now: datetime

    def on(self, affected: Sequence[Version]) -> list[Met]:
        """Deal with all versions that learnt from a cause.

        Those that serve come last: by then no other of them can be a successor.
        """
        held = held_now(self.connection, self.now)
        live = {key_of(v) for v in affected if is_live(v.state, key_of(v) in held)}
        if self.recall.action == Action.REPORT:
            return [_met(v, live, Outcome.REPORTED) for v in affected]
        self._reverse_rollouts(affected)
        serving = self._serving(affected)
        ordered = sorted(affected, key=lambda v: (key_of(v) in serving, key_of(v)))
        return [self._take_out(v, live, key_of(v) in serving) for v in ordered]

    def _reverse_rollouts(self, affected: Sequence[Version]) -> None:
        """In the order of the models' ids, so that no two recalls wait for each other."""
        numbers = {(v.model, v.number) for v in affected}
        for model in sorted({v.model for v in affected}):
            for rollout in lock_unended(self.connection, self.recall.tenant, model):
                if (model, rollout.to_version) in numbers:
                    why = self.recall.why
                    reverse_rollout(self.connection, rollout, why, self.now, self.record)

    def _serving(self, affected: Sequence[Version]) -> set[Key]:
        models = sorted({v.model for v in affected})
        query = select(MODELS.c.id, MODELS.c.serving_version).where(
            MODELS.c.tenant == self.recall.tenant, MODELS.c.id.in_(models)
        )
        rows = self.connection.execute(query)
        return {(self.recall.tenant, row.id, row.serving_version) for row in rows}

    def _take_out(self, version: Version, live: set[Key], serves: bool) -> Met:
        if version.state == VersionState.QUARANTINED:
            return _met(version, live, Outcome.OUT_ALREADY)
        successor = successor_of(self.connection, version.tenant, version.model) if serves else 0
        if self.recall.action == Action.QUARANTINE:
            quarantine_version(self.connection, version, self.recall.why, self.now)
            self._say_quarantined(version)
            return _met(version, live, Outcome.QUARANTINED, successor)
        if serves and not successor:
            return _met(version, live, Outcome.NO_SUCCESSOR)
        return self._roll_back(version, live, successor)

    def _roll_back(self, version: Version, live: set[Key], successor: int) -> Met:
        key = key_of(version)
        present = read_version(self.connection, *key)
        assert present is not None, "versions are never removed"
        if successor:
            retired, why = VersionState.RETIRED, self.recall.why
            set_version_state(self.connection, key, retired, state_reason=why, retire_time=self.now)
            serve_instead(self.connection, version, successor)
        elif not present.state_reason:  # of one that was reversed or failed it says so already
            set_version_state(self.connection, key, present.state, state_reason=self.recall.why)
        self._say_recalled(version, successor)
        return _met(version, live, Outcome.ROLLED_BACK, successor)

    def _say_quarantined(self, version: Version) -> None:
        fact = events_pb2.VersionQuarantined(
            version=version.name, reason=self.recall.why, recall=self.recall.name
        )
        self.record(self.connection, version.tenant, fact, self.recall.traceparent)

    def _say_recalled(self, version: Version, successor: int) -> None:
        fact = events_pb2.VersionRecalled(
            version=version.name,
            model=version.model,
            recall=self.recall.name,
            reason=self.recall.reason,
            successor=successor,
        )
        self.record(self.connection, version.tenant, fact, self.recall.traceparent)


def _met(version: Version, live: set[Key], outcome: Outcome, successor: int = 0) -> Met:
    was_live = key_of(version) in live
    reason = "" if is_recalls(version.state_reason) else version.state_reason
    return Met(version.model, version.number, version.state, was_live, outcome, successor, reason)
