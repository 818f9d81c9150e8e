"""Learning a reward model from compared answers: ``python -m millrace_tuner.jobs.reward``.

Reads a base checkpoint and a file of preferences, puts a head of one score on the base, and
learns that the preferred answers score higher (Bradley-Terry). What it writes and says is as of
``jobs.supervised``, but that ``model/`` has a configuration of its own and nothing is written for
a compressor; its metrics are train_loss, train_reward_accuracy, train_reward_margin and
learning_rate, its measurements valid_loss, valid_reward_accuracy and valid_reward_margin.
``reward_scorer.RewardScorer`` scores with what was learned.

Reasons of failure: those of ``jobs.supervised``, WRONG_FORMAT, ADAPTER_UNSUITABLE.
"""

from millrace_examples.kinds import Preference
from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import examples, flow, preference_examples, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import NOT_MERGED, RewardModel


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    method = spec.method
    if not isinstance(method, RewardModel):
        raise JobError("INVALID_SPEC", f"{method.kind} does not learn a reward model")
    require_merging(spec)
    training, validation = reading.files(spec, Preference)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_codec
    from millrace_tuner.jobs.reward_objective import RewardObjective
    from millrace_tuner.jobs.training import Run

    codec = load_codec(spec.base_checkpoint_path / "model")
    cancellation.raise_if_requested()
    progress = preference_examples.reported(training, validation, reporter, cancellation)
    limit = reading.sequence_limit(spec)
    examples.require_separable(codec)
    material = preference_examples.prepare(
        training,
        validation,
        lambda row: preference_examples.compare(row, codec, limit),
        progress,
    )
    objective = RewardObjective(codec, material, method)
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


def require_merging(spec: Spec) -> None:
    """
    Raises:
        JobError: ADAPTER_UNSUITABLE, when there would be no model to score with in the end.
    """
    if spec.adapter.kind in NOT_MERGED:
        message = (
            f"a reward model is used as one merged model, which an adapter of the kind "
            f"{spec.adapter.kind} cannot become; choose another, such as lora"
        )
        raise JobError("ADAPTER_UNSUITABLE", message)


if __name__ == "__main__":
    jobs.run("tuner.reward", Spec, work, lambda spec: spec.output_directory)
