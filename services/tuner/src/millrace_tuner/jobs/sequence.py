"""Learning targets from sources: ``python -m millrace_tuner.jobs.sequence``.

Reads the checkpoint of a model with an encoder and a decoder (Raffel et al. 2019,
arXiv:1910.10683) and a file of pairs of texts, and learns to write each target after having read
its source. What it writes and says is as of ``jobs.supervised``, but that nothing is written for
a compressor; its metrics are train_loss and learning_rate, its measurements valid_loss (in nats
a token of the targets) and valid_exact_match (the share of held-out sources whose target the
model writes, taking the likeliest token each time).

Reasons of failure: those of ``jobs.supervised`` but for chat templates, WRONG_FORMAT,
BASE_MODEL_UNSUITABLE, ADAPTER_UNSUITABLE.
"""

from collections.abc import Sequence

from millrace_examples.kinds import Pair
from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import flow, pair_examples, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import NOT_MERGED


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    training, validation = read(spec)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_tokenizer
    from millrace_tuner.jobs.sequence_objective import SequenceObjective
    from millrace_tuner.jobs.training import Run

    tokenizer = load_tokenizer(spec.base_checkpoint_path / "model")

    def on_progress(done: int, total: int) -> None:
        cancellation.raise_if_requested()
        reporter.progress("prepare", done, total)

    limit = reading.sequence_limit(spec)
    material = pair_examples.prepare(training, validation, tokenizer, limit, on_progress)
    objective = SequenceObjective(tokenizer, material, limit)
    Run(spec, objective, tokenizer, reporter, cancellation).train()


def read(spec: Spec) -> tuple[Sequence[Pair], Sequence[Pair] | None]:
    """
    Raises:
        JobError: ADAPTER_UNSUITABLE, and those of ``reading.files``.
    """
    if spec.method.kind != "sequence":
        raise JobError("INVALID_SPEC", f"method.kind is {spec.method.kind}, not sequence")
    if spec.adapter.kind in NOT_MERGED:
        message = (
            "an encoder and decoder are written as one merged model, which an adapter of the "
            f"kind {spec.adapter.kind} cannot become; choose another, such as lora"
        )
        raise JobError("ADAPTER_UNSUITABLE", message)
    return reading.files(spec, Pair)


if __name__ == "__main__":
    jobs.run("tuner.sequence", Spec, work, lambda spec: spec.output_directory)
