"""Whatever happens in whatever order, a dataset ends once and says so once."""

import tempfile
from pathlib import Path

from data_builders import BUILT, LEASE_SECONDS, Parts
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from millrace_data.domain import Dataset, Failure, Progress, WorkState
from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition
from millrace_runtime.leases import Lease, LeaseLost
from millrace_testkit.clock import FakeClock


class DatasetStates(RuleBasedStateMachine):
    """Clients create and cancel; two workers claim, write, lose their leases and die."""

    datasets = Bundle("datasets")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        database = open_database("sqlite://")
        self.parts = Parts(database, Path(self.folder.name), FakeClock())
        self.ended: dict[str, Dataset] = {}
        self.epochs: dict[str, int] = {}

    def teardown(self) -> None:
        self.parts.database.close()
        self.folder.cleanup()

    @rule(target=datasets)
    def create(self) -> str:
        return self.parts.create().id

    @rule(dataset=datasets)
    def cancel(self, dataset: str) -> None:
        try:
            self.parts.datasets.cancel("acme", dataset)
        except FailedPrecondition:
            assert self.ended[dataset].state in (WorkState.SUCCEEDED, WorkState.FAILED)

    @rule(target=leases, owner=st.sampled_from(["one", "other"]))
    def claim(self, owner: str) -> Lease | None:
        lease = self.parts.store_of(owner).claim()
        if lease is not None:
            assert lease.id not in self.ended
            assert lease.epoch > self.epochs.get(lease.id, 0)
            self.epochs[lease.id] = lease.epoch
        return lease

    @rule(lease=leases, action=st.sampled_from(["start", "progress", "crash", "succeed", "fail"]))
    def write(self, lease: Lease | None, action: str) -> None:
        if lease is None:
            return
        store = self.parts.dataset_store
        try:
            if action == "start":
                store.start(lease)
            elif action == "progress":
                store.record_progress(lease, Progress("read", 1, 2))
            elif action == "crash":
                store.count_attempt(lease)
            elif action == "succeed" and self._is_running(lease):
                store.succeed(lease, BUILT)
            elif action == "fail" and self._is_running(lease):
                store.fail(lease, Failure("DATASET_TOO_SMALL", "one document"))
            wrote = action in ("start", "progress", "crash")
        except LeaseLost:
            wrote = False
        if wrote:
            assert lease.epoch == self.epochs[lease.id]

    def _is_running(self, lease: Lease) -> bool:
        return self.parts.dataset_store.leased(lease).state is WorkState.RUNNING

    @rule(lease=leases)
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            self.parts.dataset_store.release(lease)

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS + 1]))
    def time_passes(self, seconds: float) -> None:
        self.parts.clock.advance(seconds)

    @invariant()
    def an_end_is_for_ever_and_was_said_once(self) -> None:
        said = [
            (data["dataset"].rsplit("/", 1)[-1], subject) for subject, _, data in self.parts.facts()
        ]
        for dataset in self.parts.dataset_store.page("-", "", 1000):
            facts = [subject for id, subject in said if id == dataset.id]
            if not dataset.state.is_final:
                assert facts == []
                assert dataset.failure is None
                assert dataset.built is None
                continue
            ready = dataset.state is WorkState.SUCCEEDED
            assert facts == [f"millrace.acme.data.dataset.{'ready' if ready else 'failed'}"]
            assert (dataset.built is not None) == ready
            assert (dataset.failure is None) == ready
            assert self.ended.setdefault(dataset.id, dataset) == dataset


DatasetStates.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDatasetStates = DatasetStates.TestCase
