"""Tuning by rewards from a grader: ``python -m millrace_tuner.jobs.reinforcement``.

Reads a base checkpoint and a file of prompts, has the policy answer each several times, and
makes more likely what the grader rewards (GRPO or RLOO). A checkpoint is committed at the end
of every epoch. What a grader cannot grade is worth 0. The prompts have the ids that serving
computes, and answers end at the tokens at which the served model stops.

Answers, dropout and order are drawn from the seed, and where the numbers stand is part of the
state: killed and resumed, the job ends with the same bytes, as long as the grader gives the
same rewards (a judge may not).

Lines on standard output: as of ``jobs.supervised``; the metrics of a step are train_loss,
train_reward_mean, train_reward_std, train_kl (with a beta), train_mean_completion_tokens,
train_grader_error_rate and learning_rate. Held-out prompts give valid_reward_mean.

Reasons of failure: those of ``jobs.supervised`` and INVALID_GRADER, GRADER_FAILED (nothing of
three batches could be graded), JUDGE_NOT_CONFIGURED, JUDGE_OF_ANOTHER_TENANT, WRONG_FORMAT.
"""

from millrace_examples.kinds import Task
from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.graders.grader import Grader
from millrace_tuner.graders.specification import Specification
from millrace_tuner.jobs import flow, grading, prompts, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Reinforcement
from millrace_tuner.settings import TunerSettings


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def read(spec: Spec) -> tuple[Specification, list[Task], list[Task] | None]:
    """The grader, the tasks of the training file, and those of the validation file.

    Raises:
        JobError: INVALID_GRADER, INVALID_EXAMPLE when the grader reads what a line lacks, and
            those of ``reading.files``.
    """
    grader = grading.parse(method_of(spec).grader)
    training, validation = reading.files(spec, Task)
    grading.require_fields(grader, training, "training file")
    grading.require_fields(grader, validation or (), "validation file")
    return grader, training, validation


def method_of(spec: Spec) -> Reinforcement:
    if not isinstance(spec.method, Reinforcement):
        raise JobError("INVALID_SPEC", f"method.kind is {spec.method.kind}, not reinforcement")
    return spec.method


def open_grader(spec: Spec, grader: Specification) -> Grader:
    """The grader, ready to be asked; as ``grading.ready``."""
    settings = TunerSettings()  # type: ignore[call-arg]  # every field has a default
    return grading.ready(grader, settings, spec.tenant)


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    specification, training, validation = read(spec)
    with open_grader(spec, specification) as grader:
        cancellation.raise_if_requested()
        # Imported here: this takes seconds, and files with mistakes are refused before it.
        from millrace_tuner.jobs.codec import load_codec
        from millrace_tuner.jobs.reinforcement_objective import ReinforcementObjective
        from millrace_tuner.jobs.training import Run

        codec = load_codec(spec.base_checkpoint_path / "model")
        total = len(training) + len(validation or ())
        material = prompts.prepare(
            training,
            validation,
            codec,
            sequence_tokens=reading.sequence_limit(spec),
            answer_tokens=method_of(spec).maximum_completion_tokens,
            on_progress=prompts.progress(reporter, cancellation, total),
        )
        objective = ReinforcementObjective(
            method_of(spec), codec, material, grading.Grading(grader)
        )
        Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


if __name__ == "__main__":
    jobs.run("tuner.reinforcement", Spec, work, lambda spec: spec.output_directory)
