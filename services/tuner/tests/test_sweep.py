"""A sweep's job: which values it tries, what it keeps, and how it goes on after a kill."""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuner_builders import conversations, write_base, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.work import JobFailure, JobOutcome, JobResult, JobStopped, run_job
from millrace_tuner.jobs import checkpoint, sweep
from millrace_tuner.jobs.metrics import METRICS_NAME
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.sweep_ledger import Ledger, Trial
from millrace_tuner.jobs.sweep_trial import Stop, trial_spec
from millrace_tuner.methods import (
    Adapter,
    Hyperparameters,
    ProximalPolicy,
    Reinforcement,
    Supervised,
)
from millrace_tuner.sweep import Range, Sweep, objective

DIGEST = "sha256:" + "1" * 64
SPACE = {"adapter.rank": Range(4, 64, log=True), "learning_rate_multiplier": Range(0.1, 10, True)}
Message = dict[str, Any]


class Killed(BaseException):
    """Stands for SIGKILL."""


class FakeTraining:
    """A training (``work.run_job``) whose loss says how far its rate is from 2; two epochs."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []
        self.script: list[Callable[[Spec], JobOutcome | None]] = []

    def __call__(
        self,
        module: str,
        told: dict[str, Any],
        directory: Path,
        hear: Callable[[Message], None],
        stop: threading.Event,
    ) -> JobOutcome:
        spec = Spec.model_validate(told)
        self.specs.append(spec)
        assert directory == spec.output_directory
        spec.output_directory.mkdir(exist_ok=True)
        scripted = self.script.pop(0)(spec) if self.script else None
        if scripted is not None:
            return scripted
        hear(progress(1))
        for epoch in (1, 2):
            hear({"kind": "state", "step": epoch})
            hear({"kind": "checkpoint", **checkpoint.report_fields(commit(spec, epoch))})
            if stop.is_set():
                return JobStopped()
        (spec.output_directory / METRICS_NAME).write_text('{"step": 1, "train_loss": 1.0}\n')
        return JobResult({})


def progress(step: int) -> Message:
    metrics = {"train_loss": 2.0, "remaining_seconds": 4.0}
    return {
        "kind": "progress", "phase": "train", "completed": step, "total": 2, "metrics": metrics
    }  # fmt: skip


def commit(spec: Spec, epoch: int) -> checkpoint.Committed:
    target = checkpoint.checkpoint_path(spec.output_directory, epoch)
    loss = abs(spec.hyperparameters.learning_rate_multiplier - 2.0) + 1.0 / epoch
    metadata = {
        "spec_digest": spec.digest,
        "step": epoch,
        "epoch": epoch,
        "final": epoch == 2,
        "train_loss": loss,
        "trained_tokens": 100 * epoch,
        "valid": {"valid_loss": loss, "valid_mean_token_accuracy": 1.0 / (1.0 + loss)},
        "base_valid": {"valid_loss": 5.0},
        "training_examples": 8,
        "heldout_examples": 1,
        "heldout_source": "split",
        "truncated_examples": 0,
        "skipped_examples": 0,
    }
    temporary = manifest.temporary_sibling(target)
    (temporary / "weights").write_text(f"{spec.learning_rate} {epoch}")
    return checkpoint.commit_checkpoint(temporary, spec.output_directory, metadata)


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=tmp_path / "base",
        base_checkpoint_digest=DIGEST,
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=DIGEST,
        output_directory=tmp_path / "out",
        hyperparameters=Hyperparameters(2, 8, 1.0),
        learning_rate=2e-3,
        sweep=Sweep(6, SPACE, "valid_loss", "minimize", pruning=False),
        seed=7,
    )


def changed(spec: Spec, output: Path | None = None, **changes: Any) -> Spec:
    assert spec.sweep is not None
    more = {} if output is None else {"output_directory": output}
    return spec.model_copy(update={"sweep": replace(spec.sweep, **changes), **more})


def perform(spec: Spec, training: FakeTraining, stop: Stop | None = None) -> list[Message]:
    """What the job says."""
    stream = io.StringIO()
    sweep.perform(spec, Reporter(stream), stop or Stop(), training)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def of_kind(said: list[Message], kind: str) -> list[Message]:
    return [message for message in said if message["kind"] == kind]


def test_the_best_trial_becomes_the_jobs_result(spec: Spec) -> None:
    training = FakeTraining()
    said = perform(spec, training)
    assert training.specs[0].hyperparameters.learning_rate_multiplier == 1.0
    assert len({each.learning_rate for each in training.specs}) == 6
    result = of_kind(said, "result")[0]
    losses = [row["measured"]["valid_loss"] for row in result["trials"]]
    (best,) = (row for row in result["trials"] if row["is_best"])
    assert best["measured"]["valid_loss"] == min(losses) < losses[0]
    checkpoints = of_kind(said, "checkpoint")
    assert [(each["step"], each["final"]) for each in checkpoints] == [(1, False), (2, True)]
    assert checkpoints[-1]["valid_loss"] == min(losses)
    assert result["checkpoint_digest"] == checkpoints[-1]["digest"]
    assert result["trained_tokens"] == 6 * 200
    left = {path.name for path in spec.output_directory.iterdir()}
    assert left == {"checkpoint-00000001", "checkpoint-00000002", METRICS_NAME, "sweep.json"}
    told = of_kind(said, "trial")
    assert [(each["trial"], each["state"]) for each in told[:-1]] == [
        (number, "finished") for number in range(1, 7)
    ]
    assert (told[-1]["trial"], told[-1]["state"]) == (best["trial"], "promoted")


def test_a_trial_is_the_job_that_would_train_with_its_values(spec: Spec) -> None:
    training = FakeTraining()
    perform(spec, training)
    for each in training.specs:
        assert each.learning_rate == pytest.approx(
            2e-3 * each.hyperparameters.learning_rate_multiplier
        )
        assert 4 <= each.adapter.rank <= 64
        assert each.adapter.alpha == 2 * each.adapter.rank  # its scale stays
        assert each.sweep is None
        assert (each.job, each.seed) == (spec.job, spec.seed)
    assert training.specs[2].tracked_as == "ftjob-1-trial-003"


def test_progress_says_which_trial_and_the_best_so_far(spec: Spec) -> None:
    said = of_kind(perform(spec, FakeTraining()), "progress")
    assert [(each["phase"], each["completed"], each["total"]) for each in said] == [
        ("sweep", number, 6) for number in range(6)
    ]
    assert "best_valid_loss" not in said[0]["metrics"]
    assert said[1]["metrics"]["best_valid_loss"] == 1.5
    assert said[1]["metrics"]["trial"] == 2
    assert said[0]["metrics"]["remaining_seconds"] >= 4.0 * 6


@pytest.mark.parametrize("killed_in", [1, 3, 6])
def test_killed_and_started_again_it_tries_the_same_and_ends_with_the_same(
    spec: Spec, tmp_path: Path, killed_in: int
) -> None:
    undisturbed = perform(spec, FakeTraining())

    def forget(given: Spec) -> None:
        manifest.remove_tree(checkpoint.checkpoint_path(given.output_directory, 1))

    def kill(given: Spec) -> None:
        commit(given, 1)
        raise Killed

    again = changed(spec, tmp_path / "again")
    training = FakeTraining()
    training.script = [lambda _: None] * (killed_in - 1) + [kill]
    with pytest.raises(Killed):
        perform(again, training)
    # What was committed before is committed again: the same bytes.
    training.script = [
        lambda given: manifest.remove_tree(given.output_directory / "checkpoint-00000001")
    ]
    said = perform(again, training)
    assert len(training.specs) == 7
    assert training.specs[killed_in - 1] == training.specs[killed_in]
    told = [each["parameters"] for each in of_kind(said, "trial")]
    assert told == [each["parameters"] for each in of_kind(undisturbed, "trial")]
    ends = [of_kind(each, "result")[0]["checkpoint_digest"] for each in (undisturbed, said)]
    assert ends[0] == ends[1]


def test_once_it_has_ended_it_says_so_again_without_training(spec: Spec) -> None:
    first = perform(spec, FakeTraining())
    training = FakeTraining()
    second = perform(spec, training)
    assert training.specs == []
    assert second[-1] == first[-1]
    assert of_kind(second, "checkpoint") == of_kind(first, "checkpoint")


def test_the_directory_of_another_sweep_is_left_alone(spec: Spec) -> None:
    perform(spec, FakeTraining())
    with pytest.raises(JobError) as caught:
        perform(changed(spec, trials=7), FakeTraining())
    assert caught.value.reason == "OUTPUT_DIRECTORY_IN_USE"


def test_a_hopeless_trial_ends_early_and_decides_nothing(spec: Spec) -> None:
    pruning = changed(spec, pruning=True, trials=12)
    training = FakeTraining()
    said = perform(pruning, training)
    rows = of_kind(said, "result")[0]["trials"]
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned
    assert all(row["last_epoch"] == 1 for row in pruned)
    finished = [row for row in rows if row["state"] == "finished"]
    assert len(finished) >= 4  # a third is not pruned, so that there is a median
    best = min(row["measured"]["valid_loss"] for row in finished)
    assert of_kind(said, "checkpoint")[-1]["valid_loss"] == best


def test_diverging_fails_the_trial_and_not_the_sweep(spec: Spec) -> None:
    training = FakeTraining()
    training.script = [lambda _: JobFailure("TRAINING_DIVERGED", "the loss is not a number")]
    said = perform(spec, training)
    first = of_kind(said, "trial")[0]
    assert (first["state"], first["value"]) == ("diverged", None)
    assert len(training.specs) == 6
    assert of_kind(said, "result")[0]["trials"][0]["measured"] == {}


def test_a_crash_is_tried_again_and_then_given_up(spec: Spec) -> None:
    training = FakeTraining()
    crash = JobFailure("CRASHED", "the job was killed (SIGKILL)")
    training.script = [lambda _: crash, lambda _: None, lambda _: crash, lambda _: crash]
    states = [each["state"] for each in of_kind(perform(spec, training), "trial")]
    assert states == ["finished", "failed", *["finished"] * 4, "promoted"]
    assert len(training.specs) == 6 + 2


def test_a_sweep_without_a_single_end_fails(spec: Spec) -> None:
    training = FakeTraining()
    training.script = [lambda _: JobFailure("TRAINING_DIVERGED", "the loss at step 3 …")] * 6
    with pytest.raises(JobError, match=r"none of 6 trials .* the loss at step 3") as caught:
        perform(spec, training)
    assert caught.value.reason == "SWEEP_FAILED"


def test_a_mistake_that_every_trial_would_make_fails_the_job(spec: Spec) -> None:
    training = FakeTraining()
    training.script = [lambda _: JobFailure("INVALID_EXAMPLE", "training file, line 3")]
    with pytest.raises(JobError, match="line 3") as caught:
        perform(spec, training)
    assert caught.value.reason == "INVALID_EXAMPLE"
    assert len(training.specs) == 1


def test_a_metric_that_is_not_measured_fails_the_job_with_those_that_are(spec: Spec) -> None:
    with pytest.raises(JobError, match="valid_loss, valid_mean_token_accuracy") as caught:
        perform(changed(spec, metric="valid_reward_mean"), FakeTraining())
    assert caught.value.reason == "SWEEP_METRIC_UNKNOWN"


def test_stopped_it_keeps_the_trial_in_hand(spec: Spec) -> None:
    stop, training = Stop(), FakeTraining()

    def terminate(_: Spec) -> None:
        stop._on_signal(15, None)

    training.script = [lambda _: None, terminate]
    with pytest.raises(JobError) as caught:
        perform(spec, training, stop)
    assert caught.value.reason == "CANCELLED"
    assert spec.sweep is not None
    running = Ledger(spec.output_directory, spec.digest, spec.sweep).running
    assert running is not None
    assert running.number == 2


def test_patience_ends_a_sweep_that_gets_no_better(spec: Spec, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, spec.digest, Sweep(9, SPACE, "valid_loss", "minimize", patience=2))
    for number, value in enumerate((3.0, 2.0, 2.5), 1):
        ledger.trials.append(Trial(number, {}, "finished", {1: value}))
    assert not ledger.is_over
    ledger.trials.append(Trial(4, {}, "diverged"))
    assert ledger.is_over
    assert ledger.best is ledger.trials[1]
    higher = Ledger(tmp_path, spec.digest, Sweep(9, SPACE, "valid_reward_mean", "maximize"))
    higher.trials = ledger.trials
    assert higher.best is ledger.trials[0]


@pytest.mark.timeout(180)
def test_with_the_real_training_the_result_is_that_of_a_plain_job(tmp_path: Path) -> None:
    spec = Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=tmp_path / "base",
        base_checkpoint_digest=write_base(tmp_path / "base"),
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=write_jsonl(tmp_path / "train.jsonl", conversations(24)),
        output_directory=tmp_path / "out",
        hyperparameters=Hyperparameters(1, 8, 0.001),
        learning_rate=2e-6,
        adapter=Adapter(rank=4, alpha=8),
        sweep=Sweep(
            2, {"learning_rate_multiplier": Range(choices=(0.001, 5.0))}, "valid_loss", "minimize"
        ),
        threads=1,
    )
    # Of two choices, the seed decides whether the second trial takes the other one.
    spec = next(s for s in (spec.model_copy(update={"seed": n}) for n in range(99)) if _varies(s))
    said: list[Message] = []
    told = spec.model_dump(mode="json")
    outcome = run_job(
        "millrace_tuner.jobs.sweep", told, tmp_path / "job", said.append, threading.Event()
    )
    assert isinstance(outcome, JobResult), outcome
    trials = outcome.fields["trials"]
    losses = [trial["measured"]["valid_loss"] for trial in trials]
    assert losses[1] < losses[0] - 0.1
    assert trials[1]["is_best"]
    best = trial_spec(spec, Trial(2, trials[1]["parameters"]))
    plain = best.model_copy(update={"output_directory": tmp_path / "plain"})
    alone = run_job(
        "millrace_tuner.jobs.supervised",
        plain.model_dump(mode="json"),
        tmp_path / "plain-job",
        lambda message: None,
        threading.Event(),
    )
    assert isinstance(alone, JobResult), alone
    assert alone.fields["checkpoint_digest"] == outcome.fields["checkpoint_digest"]


def _varies(spec: Spec) -> bool:
    from millrace_tuner.jobs.sweep_search import Search
    from millrace_tuner.jobs.sweep_trial import setting_of

    assert spec.sweep is not None
    search = Search(spec.sweep, setting_of(spec), spec.seed)
    first = Trial(1, search.propose([]), "finished", {1: 1.0})
    return search.propose([first]) != first.parameters


def test_what_decides_is_what_each_method_goes_by_itself() -> None:
    from millrace_tuner.jobs.ppo_objective import PpoObjective
    from millrace_tuner.jobs.reinforcement_objective import ReinforcementObjective
    from millrace_tuner.jobs.supervised_objective import SupervisedObjective

    for method, kind in (
        (Supervised(), SupervisedObjective),
        (Reinforcement("{}"), ReinforcementObjective),
        (ProximalPolicy("reward"), PpoObjective),
    ):
        metric, direction = objective(method)
        assert kind.criterion.name == metric
        assert kind.criterion.higher_is_better == (direction == "maximize")
