"""Supervised fine-tuning of a model on conversations: ``python -m millrace_tuner.jobs.supervised``.

Reads a base checkpoint and a file of conversations, learns the assistant's answers and nothing
else, and commits a checkpoint with the merged model at the end of every epoch. Started again
with the same specification, it goes on from the last training state that it committed.

Lines on standard output (``millrace_runtime.jobs``): ``progress`` in the phases "prepare"
(examples) and "train" (steps; metrics train_loss, train_accuracy, learning_rate,
tokens_per_second, remaining_seconds), ``state`` (one was committed; its step), ``checkpoint``
(every one on disk, also those that a killed predecessor committed: their digests tell them
apart), ``result``.

Reasons of failure: INVALID_SPEC, BASE_CHECKPOINT_INVALID, BASE_MODEL_UNSUPPORTED, FILE_MISSING,
FILE_CHANGED, INVALID_EXAMPLE, EMPTY_FILE, TOO_FEW_EXAMPLES, NOTHING_TO_LEARN,
CHAT_TEMPLATE_MISSING, CHAT_TEMPLATE_UNSUITABLE, TOKENIZER_UNSUITABLE, ADAPTER_TARGET_UNKNOWN,
CONTEXT_TOO_SHORT, PRECISION_UNSUPPORTED, ZERO_STAGE_UNSUPPORTED, TRAINING_DIVERGED, PARITY_FAILED,
OUTPUT_DIRECTORY_IN_USE, CHECKPOINT_DAMAGED, CANCELLED.
"""

from typing import TYPE_CHECKING

from millrace_examples.kinds import Conversation
from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_tuner.jobs import examples, flow, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec
    from millrace_tuner.jobs.supervised_objective import Material

_REPORT_EVERY_EXAMPLES = 200


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    training, validation = reading.files(spec, Conversation)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_codec
    from millrace_tuner.jobs.supervised_objective import SupervisedObjective
    from millrace_tuner.jobs.training import Run

    codec = load_codec(spec.base_checkpoint_path / "model")
    cancellation.raise_if_requested()
    limit = reading.sequence_limit(spec)
    material = prepare(limit, training, validation, codec, reporter, cancellation)
    objective = SupervisedObjective(codec, material)
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


def prepare(
    limit: int,
    training: list[Conversation],
    validation: list[Conversation] | None,
    codec: "ChatCodec",
    reporter: Reporter,
    cancellation: Cancellation,
) -> "Material":
    """Tokenise what there is to learn and to measure by, ``limit`` tokens an example at most."""
    from millrace_tuner.jobs.supervised_objective import Material

    examples.require_separable(codec)
    total = len(training) + len(validation or ())

    def on_progress(done: int) -> None:
        cancellation.raise_if_requested()
        if done % _REPORT_EVERY_EXAMPLES == 0:
            reporter.progress("prepare", done, total)

    learned = examples.encode_all(training, codec, limit, on_progress)
    if validation is None:
        kept, heldout = examples.split(learned.examples)
        return Material(kept, heldout, "split", learned.truncated, learned.skipped)
    measured = examples.encode_all(
        validation, codec, limit, lambda done: on_progress(len(training) + done)
    )
    truncated = learned.truncated + measured.truncated
    skipped = learned.skipped + measured.skipped
    return Material(learned.examples, measured.examples, "validation_file", truncated, skipped)


if __name__ == "__main__":
    jobs.run("tuner.supervised", Spec, work, lambda spec: spec.output_directory)
