"""Whatever happens to searches, in whatever order: the states, the leases and what is kept."""

import contextlib
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import select
from tuning_builders import BEST, WISH, trial

from millrace_registry.domain import Deployment, RequestKey, Serving
from millrace_registry.rows import deployment_values
from millrace_registry.schema import DEPLOYMENTS, METADATA, SERVING_TUNINGS
from millrace_registry.tuning.resource import (
    Failure,
    Plan,
    Progress,
    Result,
    ServingTuning,
    State,
    Wish,
)
from millrace_registry.tuning.space import Limits
from millrace_registry.tuning.store import TuningStore
from millrace_registry.tuning.trial import Kind
from millrace_runtime import names
from millrace_runtime.database import open_database
from millrace_runtime.errors import AlreadyExists
from millrace_runtime.leases import Lease, LeaseLost
from millrace_testkit.clock import FakeClock

MODELS = ("one", "two")
PLAN = Plan(1, Serving(), Limits(1, 1, 1, 1))
RESULT = Result(winner=1, is_better=True, reason="why", noise=0.05)
NEXT = {
    State.QUEUED: {State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED},
    State.RUNNING: {State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED},
}
PICK = st.integers(0, 99)
WRITES = ("start", "trial", "attempt", "put_off", "succeed", "fail", "release")


class Searches(RuleBasedStateMachine):
    """Two deployments, two registries; leases that were lost are tried to be written with."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = open_database(f"sqlite:///{Path(self.folder.name)}/service.db")
        METADATA.create_all(self.database.engine)
        self.clock = FakeClock()
        self.stores = [self._store("a"), self._store("b")]
        self.leases: list[Lease] = []
        self.seen: dict[str, ServingTuning] = {}
        self.deployments = {model: self._deployment(model) for model in MODELS}

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    def _store(self, owner: str) -> TuningStore:
        return TuningStore(
            self.database, endpoint="t", owner=owner, lease_seconds=10, now=self.clock
        )

    def _deployment(self, model: str) -> str:
        now = self.clock()
        made = Deployment("acme", names.new_id("deployment"), model, now, now)
        with self.database.transaction() as connection:
            values = {"id": made.id, "tenant": "acme", **deployment_values(made)}
            connection.execute(DEPLOYMENTS.insert().values(**values))
        return made.id

    @rule(model=st.sampled_from(MODELS), dry=st.booleans())
    def create(self, model: str, dry: bool) -> None:
        deployment = self.deployments[model]
        wish: Wish = replace(WISH, is_dry_run=dry)
        made = ServingTuning("acme", names.new_id("tuning"), deployment, model, wish, self.clock())
        under_way = [
            each.id
            for each in self._all()
            if each.deployment == deployment and not each.state.has_ended
        ]
        if under_way:
            with pytest.raises(AlreadyExists, match=under_way[0]):
                self.stores[0].add(made, RequestKey("", ""))
        else:
            assert self.stores[0].add(made, RequestKey("", "")) == made

    @rule(by=st.integers(0, 1))
    def claim(self, by: int) -> None:
        lease = self.stores[by].claim()
        if lease is not None:
            assert all(old.epoch < lease.epoch for old in self.leases if old.id == lease.id)
            self.leases.append(lease)

    @rule(seconds=st.sampled_from([1, 11]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.seen)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        id = sorted(self.seen)[pick % len(self.seen)]
        before = self.stores[0].get("acme", id)
        after = self.stores[0].cancel("acme", id)
        assert before is not None
        assert after is not None
        assert after == before if before.state.has_ended else after.state == State.CANCELLED

    @precondition(lambda self: self.leases)
    @rule(
        pick=PICK,
        what=st.sampled_from(
            ["start", "trial", "attempt", "put_off", "succeed", "fail", "release"]
        ),
    )
    def write(self, pick: int, what: str) -> None:
        lease = self.leases[pick % len(self.leases)]
        before = self._get(lease.id)
        if what in ("trial", "succeed") and before.state != State.RUNNING:
            return  # the worker starts what it claims first
        is_held = self._epoch(lease.id) == lease.epoch and not before.state.has_ended
        with contextlib.suppress(LeaseLost):
            self._write(lease, before, what)
            assert is_held or what == "release"
        if not is_held:
            assert self._get(lease.id) == before

    def _write(self, lease: Lease, before: ServingTuning, what: str) -> None:
        store, progress = self.stores[0], Progress("phase", 1, 5)
        serving = None if before.wish.is_dry_run else BEST
        writes: dict[str, Any] = {
            "start": lambda: store.start(lease, before.plan or PLAN),
            "trial": lambda: store.record_trial(
                lease, trial(len(before.trials), Kind.CANDIDATE, 5.0), progress
            ),
            "attempt": lambda: store.count_attempt(lease),
            "put_off": lambda: store.put_off(lease, timedelta(seconds=5), progress),
            "succeed": lambda: store.succeed(lease, RESULT, serving),
            "fail": lambda: store.fail(lease, Failure("WHY", "because")),
            "release": lambda: store.release(lease),
        }
        writes[what]()

    @invariant()
    def states_follow_each_other(self) -> None:
        for found in self._all():
            known = self.seen.get(found.id)
            if known is not None and known.state.has_ended:
                assert found == known
            elif known is not None:
                assert found.state in NEXT[known.state]
                assert found.trials[: len(known.trials)] == known.trials
                assert known.plan in (None, found.plan)
            self.seen[found.id] = found

    @invariant()
    def an_ended_one_says_how(self) -> None:
        for found in self._all():
            assert (found.finish_time is not None) == found.state.has_ended
            assert (found.result is not None) == (found.state == State.SUCCEEDED)
            if found.state in (State.FAILED, State.CANCELLED):
                assert found.failure is not None

    @invariant()
    def a_deployment_has_one_at_a_time(self) -> None:
        unended = [found.deployment for found in self._all() if not found.state.has_ended]
        assert len(unended) == len(set(unended))
        with self.database.transaction() as connection:
            active = select(SERVING_TUNINGS.c.active_deployment)
            found = [each for each in connection.execute(active).scalars() if each is not None]
        assert sorted(found) == sorted(unended)

    @invariant()
    def a_deployment_has_the_first_winner_that_was_written(self) -> None:
        written = {t.deployment for t in self._all() if t.result and t.result.is_written}
        with self.database.transaction() as connection:
            for row in connection.execute(select(DEPLOYMENTS)):
                assert (row.serving["max_batch_size"] is not None) == (row.id in written)
                assert row.revision == 1 + (row.id in written)

    def _all(self) -> list[ServingTuning]:
        return [self._get(found.id) for found in self.stores[0].page("acme", "", "", 1000)]

    def _get(self, id: str) -> ServingTuning:
        found = self.stores[0].get("acme", id)
        assert found is not None
        return found

    def _epoch(self, id: str) -> int:
        with self.database.transaction() as connection:
            query = select(SERVING_TUNINGS.c.epoch).where(SERVING_TUNINGS.c.id == id)
            return int(connection.execute(query).scalar_one())


TestSearches = Searches.TestCase
TestSearches.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
