"""Whatever happens in whatever order, a run ends once, says so once, and keeps its checkpoints."""

import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from trainer_builders import CORPUS, DATASET, LATE, LEASE_SECONDS, Parts, checkpoint_of

from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition
from millrace_runtime.leases import Lease, LeaseLost
from millrace_testkit.clock import FakeClock
from millrace_trainer.domain import Failure, Progress, Run, State

_END = {
    State.SUCCEEDED: "run.succeeded",
    State.FAILED: "run.failed",
    State.CANCELLED: "run.cancelled",
}
_ACTIONS = ("start", "progress", "checkpoint", "crash", "put_off", "succeed", "fail")


class RunStates(RuleBasedStateMachine):
    """Clients create, cancel, pause and resume; datasets come or fail; two workers claim, write,
    lose their leases and die."""

    runs = Bundle("runs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.parts = Parts(open_database("sqlite://"), Path(self.folder.name), FakeClock())
        self.ended: dict[str, Run] = {}
        self.epochs: dict[str, int] = {}

    def teardown(self) -> None:
        self.parts.database.close()
        self.folder.cleanup()

    @rule(target=runs, dataset=st.sampled_from([CORPUS, LATE]))
    def create(self, dataset: str) -> str:
        return self.parts.create(dataset).id

    @rule(run=runs, action=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, run: str, action: str) -> None:
        try:
            asked = getattr(self.parts.app, action)("acme", run)
        except FailedPrecondition:
            assert run in self.ended
        else:
            assert action != "pause" or asked.state is State.PAUSED
            assert action != "cancel" or asked.state is State.CANCELLED
            assert action != "resume" or asked.state in (State.QUEUED, State.RUNNING)

    @rule(is_ready=st.booleans())
    def dataset_settles(self, is_ready: bool) -> None:
        if is_ready:
            self.parts.app.dataset_ready(LATE, DATASET)
        else:
            self.parts.app.dataset_failed(LATE, Failure("DATASET_TOO_SMALL", "one document"))

    @rule(target=leases, owner=st.sampled_from(["one", "other"]))
    def claim(self, owner: str) -> Lease | None:
        lease = self.parts.store_of(owner).claim()
        if lease is not None:
            run = self.parts.app.get("acme", lease.id)
            assert run.state in (State.QUEUED, State.RUNNING)
            assert run.dataset is not None
            assert lease.epoch > self.epochs.get(lease.id, 0)
            self.epochs[lease.id] = lease.epoch
        return lease

    @rule(
        lease=leases,
        action=st.sampled_from(_ACTIONS),
        step=st.integers(1, 3),
    )
    def write(self, lease: Lease | None, action: str, step: int) -> None:
        if lease is None or lease.id in self.ended:
            return
        store = self.parts.store
        try:
            if action == "start":
                store.start(lease)
            elif action == "progress":
                store.record_progress(lease, Progress("train", step, 3, {"loss": 1.0}))
            elif action == "checkpoint":
                run = self.parts.app.get("acme", lease.id)
                id = f"ckpt-{lease.id}-{lease.epoch}-{step}"
                store.add_checkpoint(lease, checkpoint_of(run, step, id), 1)
            elif action == "crash":
                store.count_attempt(lease)
            elif action == "put_off":
                store.put_off(lease, timedelta(seconds=LEASE_SECONDS))
            elif action == "succeed":
                store.succeed(lease)
            else:
                store.fail(lease, Failure("TRAINING_DIVERGED", "nan"))
        except LeaseLost:
            return
        assert lease.epoch == self.epochs[lease.id]

    @rule(lease=leases)
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            self.parts.store.release(lease)

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS + 1]))
    def time_passes(self, seconds: float) -> None:
        self.parts.clock.advance(seconds)

    @invariant()
    def what_is_said_is_what_is(self) -> None:
        said = [(subject.split("trainer.")[1], data) for subject, _, data in self.parts.facts()]
        for run in self.parts.store.page("-", "", 1000):
            about = [subject for subject, data in said if data["run"] == run.name]
            ends = [subject for subject in about if subject in _END.values()]
            assert about.count("run.started") == run.has_started
            checkpoints = self.parts.store.checkpoint_page("acme", run.id, "", 100)
            assert about.count("checkpoint.finished") == len(checkpoints)
            assert len({checkpoint.step for checkpoint in checkpoints}) == len(checkpoints)
            if not run.state.is_final:
                assert ends == []
                assert run.failure is None
                continue
            assert ends == [_END[run.state]]
            assert (run.failure is not None) == (run.state is State.FAILED)
            assert self.ended.setdefault(run.id, run) == run


RunStates.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestRunStates = RunStates.TestCase
