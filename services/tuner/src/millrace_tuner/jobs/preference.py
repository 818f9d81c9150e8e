"""Learning from preferences, DPO, ORPO and KTO: ``python -m millrace_tuner.jobs.preference``.

Reads a base checkpoint and a file of compared answers (KTO: of judged ones), and moves the model
towards the better answers. What it writes and says is as of ``jobs.supervised``; its metrics are
train_loss, train_reward_accuracy, train_reward_margin and learning_rate, its measurements
valid_loss, valid_reward_accuracy and valid_reward_margin. A reward is an answer's log-probability
less that by the base, times beta; ORPO has no base to hold it against.

Reasons of failure: those of ``jobs.supervised``, WRONG_FORMAT, and of KTO BATCH_TOO_SMALL.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from millrace_examples.kinds import Judged, Preference
from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import examples, flow, preference_examples, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import (
    FEWEST_FOR_KTO,
    DirectPreference,
    KahnemanTversky,
    OddsRatio,
    contradiction,
)

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec
    from millrace_tuner.jobs.objective import Objective


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    require_consistent(spec)
    build = read_compared if spec.method.kind != "kto" else read_judged
    objective_of = build(spec, reporter, cancellation)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_codec
    from millrace_tuner.jobs.training import Run

    codec = load_codec(spec.base_checkpoint_path / "model")
    cancellation.raise_if_requested()
    examples.require_separable(codec)
    Run(spec, objective_of(codec), codec.tokenizer, reporter, cancellation).train()


def require_consistent(spec: Spec) -> None:
    """Refuse what cannot be learned, whatever the files hold.

    Raises:
        JobError: INVALID_SPEC; BATCH_TOO_SMALL, as KTO holds the answers of a batch against one
            another's prompts.
    """
    if wrong := contradiction(spec.method):
        raise JobError("INVALID_SPEC", wrong)
    if spec.method.kind == "kto" and spec.hyperparameters.batch_size < FEWEST_FOR_KTO:
        message = (
            "KTO holds the answers of a batch against one another's prompts; choose a batch_size "
            f"of {FEWEST_FOR_KTO} or more"
        )
        raise JobError("BATCH_TOO_SMALL", message)


def read_compared(
    spec: Spec, reporter: Reporter, cancellation: Cancellation
) -> "Callable[[ChatCodec], Objective]":
    """Read the files; what is returned tokenises them."""
    method = spec.method
    if not isinstance(method, DirectPreference | OddsRatio):
        raise JobError("INVALID_SPEC", f"{method.kind} does not learn from preferences")
    training, validation = reading.files(spec, Preference)
    limit = reading.sequence_limit(spec)
    progress = preference_examples.reported(training, validation, reporter, cancellation)

    def objective(codec: "ChatCodec") -> "Objective":
        from millrace_tuner.jobs.preference_objective import ComparedObjective

        material = preference_examples.prepare(
            training,
            validation,
            lambda row: preference_examples.compare(row, codec, limit),
            progress,
        )
        return ComparedObjective(codec, material, method)

    return objective


def read_judged(
    spec: Spec, reporter: Reporter, cancellation: Cancellation
) -> "Callable[[ChatCodec], Objective]":
    """Read the files; what is returned tokenises them."""
    method = spec.method
    if not isinstance(method, KahnemanTversky):
        raise JobError("INVALID_SPEC", f"{method.kind} does not learn from judged answers")
    training, validation = reading.files(spec, Judged)
    limit = reading.sequence_limit(spec)
    progress = preference_examples.reported(training, validation, reporter, cancellation)

    def objective(codec: "ChatCodec") -> "Objective":
        from millrace_tuner.jobs.preference_objective import JudgedObjective

        material = preference_examples.prepare(
            training,
            validation,
            lambda row: preference_examples.judge(row, codec, limit),
            progress,
        )
        return JudgedObjective(codec, material, method)

    return objective


if __name__ == "__main__":
    jobs.run("tuner.preference", Spec, work, lambda spec: spec.output_directory)
