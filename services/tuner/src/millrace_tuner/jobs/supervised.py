"""Supervised fine-tuning of a model on conversations: ``python -m millrace_tuner.jobs.supervised``.

Reads a base checkpoint and a JSONL file, learns the assistant's answers and nothing else, and
commits a checkpoint with the merged model at the end of every epoch. Started again with the
same specification, it goes on from the last training state that it committed.

Lines on standard output (``millrace_runtime.jobs``): ``progress`` in the phases "prepare"
(examples) and "train" (steps; metrics train_loss, train_accuracy, learning_rate,
tokens_per_second), ``state`` (one was committed; its step), ``checkpoint`` (every one on disk,
also those that a killed predecessor committed: their digests tell them apart), ``result``.

Reasons of failure: INVALID_SPEC, BASE_CHECKPOINT_INVALID, BASE_MODEL_UNSUPPORTED, FILE_MISSING,
FILE_CHANGED, INVALID_EXAMPLE, EMPTY_FILE, TOO_FEW_EXAMPLES, NOTHING_TO_LEARN,
CHAT_TEMPLATE_MISSING, CHAT_TEMPLATE_UNSUITABLE, TOKENIZER_UNSUITABLE, ADAPTER_TARGET_UNKNOWN,
CONTEXT_TOO_SHORT, TRAINING_DIVERGED, OUTPUT_DIRECTORY_IN_USE, CHECKPOINT_DAMAGED, CANCELLED.
"""

import os
from typing import TYPE_CHECKING, Any

from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, examples
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.checkpoint import Committed
from millrace_tuner.jobs.conversations import Conversation, read_conversations
from millrace_tuner.jobs.metrics import METRICS_NAME
from millrace_tuner.jobs.specification import Spec

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec
    from millrace_tuner.jobs.training import Material

_REPORT_EVERY_EXAMPLES = 200


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    cancellation = Cancellation()
    cancellation.listen()
    spec.output_directory.mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(spec.output_directory)
    known = checkpoint.checkpoints(spec.output_directory, spec.digest)
    for committed in known:
        reporter.report("checkpoint", **checkpoint.report_fields(committed))
    if not (known and known[-1].metadata["final"]):
        verify_base(spec)
        training, validation = read_files(spec)
        cancellation.raise_if_requested()
        tune(spec, training, validation, reporter, cancellation)
        known = checkpoint.checkpoints(spec.output_directory, spec.digest)
    checkpoint.remove_states(spec.output_directory)
    reporter.report("result", **result_fields(spec, known[-1]))


def verify_base(spec: Spec) -> None:
    """
    Raises:
        JobError: BASE_CHECKPOINT_INVALID, naming the first file that is wrong.
    """
    try:
        manifest.verify(spec.base_checkpoint_path, spec.base_checkpoint_digest)
    except manifest.ManifestError as error:
        message = f"the base checkpoint is not what it was: {error}; restore it or tune another"
        raise JobError("BASE_CHECKPOINT_INVALID", message) from error


def read_files(spec: Spec) -> tuple[list[Conversation], list[Conversation] | None]:
    """The conversations of the training file and, when there is one, the validation file."""
    training = read_conversations(
        spec.training_file_path, spec.training_file_sha256, "training file"
    )
    if spec.validation_file_path is None:
        return training, None
    if spec.validation_file_sha256 is None:
        raise JobError("INVALID_SPEC", "validation_file_sha256 must be given with the file's path")
    return training, read_conversations(
        spec.validation_file_path, spec.validation_file_sha256, "validation file"
    )


def tune(
    spec: Spec,
    training: list[Conversation],
    validation: list[Conversation] | None,
    reporter: Reporter,
    cancellation: Cancellation,
) -> None:
    """Tokenise, load the model and train it to the end."""
    # A job uses what lies on disk: no library may look for anything on a network, nor tell
    # anybody that it runs. They read these when they are imported.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    import torch
    from transformers.utils import logging as transformers_logging

    from millrace_tuner.jobs import adapter
    from millrace_tuner.jobs.codec import generation_stop_ids, load_codec
    from millrace_tuner.jobs.training import Run

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(spec.threads)
    model_directory = spec.base_checkpoint_path / "model"
    model = adapter.load_base(model_directory)
    limit = sequence_limit(spec, model.config.max_position_embeddings)
    codec = load_codec(model_directory, generation_stop_ids(model))
    cancellation.raise_if_requested()
    material = prepare(limit, training, validation, codec, reporter, cancellation)
    run = Run(spec, model, codec, material, reporter, cancellation)
    run.train(checkpoint.newest_state(spec.output_directory, spec.digest))


def sequence_limit(spec: Spec, context_tokens: int) -> int:
    """How many tokens an example may have.

    Raises:
        JobError: CONTEXT_TOO_SHORT, when it would be more than the model's context holds.
    """
    if spec.maximum_sequence_tokens is None:
        return context_tokens
    if spec.maximum_sequence_tokens > context_tokens:
        message = (
            f"maximum_sequence_tokens is {spec.maximum_sequence_tokens}, but the base model's "
            f"context holds {context_tokens} tokens; lower it"
        )
        raise JobError("CONTEXT_TOO_SHORT", message)
    return spec.maximum_sequence_tokens


def prepare(
    limit: int,
    training: list[Conversation],
    validation: list[Conversation] | None,
    codec: "ChatCodec",
    reporter: Reporter,
    cancellation: Cancellation,
) -> "Material":
    """Tokenise what there is to learn and to measure by, ``limit`` tokens an example at most."""
    from millrace_tuner.jobs.training import Material

    examples.require_separable(codec)
    total = len(training) + len(validation or ())

    def on_progress(done: int) -> None:
        cancellation.raise_if_requested()
        if done % _REPORT_EVERY_EXAMPLES == 0:
            reporter.progress("prepare", done, total)

    learned = examples.encode_all(training, codec, limit, on_progress)
    if validation is None:
        kept, heldout = examples.split(learned.examples)
        return Material(kept, heldout, limit, learned.truncated, learned.skipped)
    measured = examples.encode_all(
        validation, codec, limit, lambda done: on_progress(len(training) + done)
    )
    truncated = learned.truncated + measured.truncated
    skipped = learned.skipped + measured.skipped
    return Material(learned.examples, measured.examples, limit, truncated, skipped)


def result_fields(spec: Spec, final: Committed) -> dict[str, Any]:
    """The fields of the job's ``result`` line, from what the final checkpoint says of itself."""
    metadata = final.metadata
    copied = (
        "step",
        "train_loss",
        "trained_tokens",
        "training_examples",
        "heldout_examples",
        "heldout_source",
        "truncated_examples",
        "skipped_examples",
    )
    return {
        "checkpoint_path": str(final.path),
        "checkpoint_digest": final.digest,
        "metrics_path": str(spec.output_directory / METRICS_NAME),
        "valid_loss": metadata["heldout_loss"],
        "base_valid_loss": metadata["base_heldout_loss"],
        **{name: metadata[name] for name in copied},
    }


if __name__ == "__main__":
    jobs.run("tuner.supervised", Spec, work, lambda spec: spec.output_directory)
