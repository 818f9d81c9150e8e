"""Learning a teacher's distributions: ``python -m millrace_tuner.jobs.distillation``.

Reads a base checkpoint (the student), the checkpoint of a model with the same vocabulary (the
teacher) and a file of conversations, and brings the student's distribution at every token of the
answers near the teacher's (Agarwal et al. 2023, arXiv:2306.13649); of what a compression has
pruned, at every token of windows of what it was trained on. Of the steps, the share
``own_answers`` learn from answers that the student writes itself; what is written, and at which
steps, is drawn from the seed and the step alone. What it writes and says is as of
``jobs.supervised``; its metrics are train_loss (the divergence, in nats a token), train_entropy
(the student's) and learning_rate, its measurements valid_loss (of the held-out answers
themselves) and valid_divergence.

Reasons of failure: those of ``jobs.supervised``, WRONG_FORMAT, TEACHER_INVALID (damaged),
VOCABULARY_DIFFERS.
"""

from pathlib import Path

from millrace_examples.kinds import Conversation
from millrace_runtime import jobs, manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import examples, flow, reading, supervised, token_windows
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Distillation


def work(spec: Spec, reporter: Reporter) -> None:
    """Do the job; what fails cheaply comes before what costs seconds to import."""
    flow.perform(spec, reporter, lambda cancellation: learn(spec, reporter, cancellation))


def learn(spec: Spec, reporter: Reporter, cancellation: Cancellation) -> None:
    method = spec.method
    if not isinstance(method, Distillation):
        raise JobError("INVALID_SPEC", f"method.kind is {method.kind}, not distillation")
    read = None if token_windows.is_meant(spec) else reading.files(spec, Conversation)
    teacher = verified_teacher(spec)
    cancellation.raise_if_requested()
    # Imported here: this takes seconds, and files with mistakes are refused before it.
    from millrace_tuner.jobs.codec import load_codec, load_plain_codec
    from millrace_tuner.jobs.distillation_objective import DistillationObjective
    from millrace_tuner.jobs.supervised_objective import Material
    from millrace_tuner.jobs.training import Run

    load = load_plain_codec if read is None else load_codec
    codec = load(spec.base_checkpoint_path / "model")
    cancellation.raise_if_requested()
    limit = reading.sequence_limit(spec)
    if read is None:
        material = Material(*examples.split(token_windows.read(spec)), "split", 0, 0)
    else:
        material = supervised.prepare(limit, *read, codec, reporter, cancellation)
    objective = DistillationObjective(codec, material, method, teacher, limit)
    Run(spec, objective, codec.tokenizer, reporter, cancellation).train()


def verified_teacher(spec: Spec) -> Path:
    """The teacher's model, every byte as it was committed, with the student's vocabulary.

    Raises:
        JobError: INVALID_SPEC, TEACHER_INVALID, VOCABULARY_DIFFERS.
    """
    if spec.companion_path is None or spec.companion_digest is None:
        raise JobError("INVALID_SPEC", "companion_path and companion_digest must be given")
    try:
        manifest.verify(spec.companion_path, spec.companion_digest)
    except manifest.ManifestError as error:
        message = f"the teacher is not what it was: {error}; restore it or name another"
        raise JobError("TEACHER_INVALID", message) from error
    teacher = spec.companion_path / "model"
    require_same_vocabulary(teacher, spec.base_checkpoint_path / "model")
    return teacher


def require_same_vocabulary(teacher: Path, student: Path) -> None:
    """
    Raises:
        JobError: VOCABULARY_DIFFERS, naming a token.
    """
    # Imported here: it takes a second.
    from millrace_tuner.jobs.codec import load_tokenizer

    known, wanted = (set(load_tokenizer(path).get_vocab().items()) for path in (teacher, student))
    if known != wanted:
        token, number = min(known ^ wanted, key=lambda entry: (entry[1], entry[0]))
        message = (
            f"the teacher and the base have different vocabularies (of {len(known)} and "
            f"{len(wanted)} tokens, first {token!r} as {number}), so their distributions cannot "
            "be compared; name a teacher with the base's tokenizer"
        )
        raise JobError("VOCABULARY_DIFFERS", message)


if __name__ == "__main__":
    jobs.run("tuner.distillation", Spec, work, lambda spec: spec.output_directory)
