"""Learning to tell classes apart: ``python -m millrace_tuner.jobs.classification``.

Reads a base checkpoint and a file of texts or conversations with labels, and puts a head on the
base that has a score for each label of the training file. What it writes and says is as of
``jobs.supervised``, but that ``model/`` has a configuration of its own, with the labels in
``id2label``, and nothing is written for a compressor; its metrics are train_loss, train_accuracy
and learning_rate, its measurements valid_loss, valid_accuracy and valid_f1_macro.

Reasons of failure: those of ``jobs.supervised``, WRONG_FORMAT, ADAPTER_UNSUITABLE,
TOO_FEW_CLASSES, TOO_MANY_CLASSES.
"""

from typing import TYPE_CHECKING

from millrace_examples.kinds import Classified
from millrace_runtime import jobs
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import class_examples, flow, reading
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.class_examples import Labelled
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import NOT_MERGED

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    labelled = read(spec)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.classification_objective import ClassificationObjective
    from millrace_tuner.jobs.training import Run

    codec = load_codec(spec, labelled)

    def on_progress(done: int, total: int) -> None:
        cancellation.raise_if_requested()
        reporter.progress("prepare", done, total)

    limit = reading.sequence_limit(spec)
    material = class_examples.prepare(labelled, codec, limit, on_progress)
    objective = ClassificationObjective(codec, labelled.labels, material)
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


def read(spec: Spec) -> Labelled:
    """
    Raises:
        JobError: ADAPTER_UNSUITABLE, TOO_FEW_CLASSES, TOO_MANY_CLASSES, and those of
            ``reading.files``.
    """
    if spec.method.kind != "classification":
        raise JobError("INVALID_SPEC", f"method.kind is {spec.method.kind}, not classification")
    if spec.adapter.kind in NOT_MERGED:
        message = (
            "a classifier is written as one merged model, which an adapter of the kind "
            f"{spec.adapter.kind} cannot become; choose another, such as lora"
        )
        raise JobError("ADAPTER_UNSUITABLE", message)
    return class_examples.labelled(*reading.files(spec, Classified))


def load_codec(spec: Spec, labelled: Labelled) -> "ChatCodec":
    """The base's tokenizer; its chat template must be there for conversations.

    Raises:
        JobError: CHAT_TEMPLATE_MISSING.
    """
    from millrace_tuner.jobs import codec

    load = codec.load_codec if labelled.has_conversations else codec.load_plain_codec
    return load(spec.base_checkpoint_path / "model")


if __name__ == "__main__":
    jobs.run("tuner.classification", Spec, work, lambda spec: spec.output_directory)
