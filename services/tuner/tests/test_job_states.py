"""Whatever happens in whatever order, a job ends at most once and says so once."""

import tempfile
import threading
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from tuner_parts import LEASE_SECONDS, Parts

from millrace_runtime.database import open_database
from millrace_runtime.errors import FailedPrecondition
from millrace_runtime.leases import Lease, LeaseLost
from millrace_runtime.work import JobFailure, JobOutcome, JobStopped
from millrace_testkit.clock import FakeClock
from millrace_tuner.domain import FINISHED, Job, JobState, WrongState
from millrace_tuner.serving import Scene, SeenCompression, SeenVersion

END_FACTS = {
    JobState.SUCCEEDED: "job.succeeded",
    JobState.FAILED: "job.failed",
    JobState.CANCELLED: "job.cancelled",
}


class JobStates(RuleBasedStateMachine):
    """Users create, pause, resume and cancel; workers claim, train, crash and lose their
    leases; the mesh serves or rejects what was trained, and tells it late, twice or never."""

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.parts = Parts(open_database("sqlite://"), Path(self.folder.name), FakeClock())
        self.ended: dict[str, Job] = {}
        self.epochs: dict[str, int] = {}

    def teardown(self) -> None:
        self.parts.database.close()
        self.folder.cleanup()

    @rule(target=jobs)
    def create(self) -> str:
        return self.parts.create().id

    @rule(job=jobs, action=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, job: str, action: str) -> None:
        before = self.parts.app.get("acme", job)
        try:
            getattr(self.parts.app, action)("acme", job)
        except FailedPrecondition:
            assert before.state in FINISHED or (action == "pause" and before.trained_time)
            assert self.parts.app.get("acme", job) == before

    @rule(target=leases)
    def claim(self) -> Lease | None:
        lease = self.parts.store.claim()
        if lease is not None:
            assert self.parts.app.get("acme", lease.id).is_training
            assert lease.epoch > self.epochs.get(lease.id, 0)
            self.epochs[lease.id] = lease.epoch
        return lease

    @rule(
        lease=leases,
        ends=st.sampled_from(["result", "stopped", "crash", "mistake"]),
        makes_checkpoint=st.booleans(),
    )
    def train(self, lease: Lease | None, ends: str, makes_checkpoint: bool) -> None:
        if lease is None:
            return
        job = self.parts.app.get("acme", lease.id)
        outcomes: dict[str, JobOutcome] = {
            "result": self.parts.result(job),
            "stopped": JobStopped(),
            "crash": JobFailure("CRASHED", "status -9"),
            "mistake": JobFailure("INVALID_EXAMPLE", "line 3"),
        }
        ready = makes_checkpoint or ends == "result"
        self.parts.job.messages = [self.parts.checkpoint_message(job, 20)] if ready else []
        self.parts.job.outcome = outcomes[ends]
        try:
            self.parts.attempt.perform(lease, threading.Event())
        except (LeaseLost, WrongState):
            return
        assert lease.epoch == self.epochs[lease.id]

    @rule(job=jobs, serves=st.booleans(), how=st.sampled_from(["fact", "silence"]))
    def decide(self, job: str, serves: bool, how: str) -> None:
        final = self.parts.store.final_checkpoint(job)
        if final is None:
            return
        compression = SeenCompression("c1", final.name, "SUCCEEDED", serves, (), None)
        versions = [SeenVersion(1, "c1", final.name, "SERVING", "")] if serves else []
        self.parts.models.scenes.setdefault(final.model, Scene([compression], versions))
        if how == "fact":
            self.parts.app.follow("acme", job, final.id)

    @rule()
    def reconcile(self) -> None:
        self.parts.app.reconcile()
        assert not [
            job
            for job in self.parts.store.awaiting_outcome()
            if job.tuned_model in self.parts.models.scenes
        ]

    @rule(seconds=st.sampled_from([1.0, LEASE_SECONDS + 1]))
    def time_passes(self, seconds: float) -> None:
        self.parts.clock.advance(seconds)

    @invariant()
    def an_end_is_for_ever_and_was_said_once(self) -> None:
        said: dict[str, list[str]] = {}
        for subject, data in self.parts.facts():
            said.setdefault(data["job"].rpartition("/")[2], []).append(subject.split(".", 3)[3])
        for job in self.parts.store.page("-", "", 1000):
            facts = said.get(job.id, [])
            ends = [fact for fact in facts if fact in END_FACTS.values()]
            assert facts.count("job.started") == (job.start_time is not None)
            assert facts.count("checkpoint.finished") <= 1
            if job.state not in FINISHED:
                assert ends == []
                assert job.finish_time is None
                continue
            assert ends == [END_FACTS[job.state]]
            assert (job.failure is not None) == (job.state == JobState.FAILED)
            assert job.state != JobState.SUCCEEDED or (job.trained_time and job.result_file)
            assert self.ended.setdefault(job.id, job) == job


JobStates.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestJobStates = JobStates.TestCase
