"""Reads a job's files as its method will, and counts: ``python -m millrace_tuner.jobs.validate``.

It is told what the training job is told, and writes nothing. Its ``result``: training_examples,
training_tokens (with the base's own tokenizer and chat template), longest_tokens,
truncated_examples, skipped_examples, validation_examples. Torch is not imported.

Reasons of failure: those that the method's own module gives before it trains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from millrace_examples.kinds import Conversation, Judged, Preference, Task
from millrace_runtime import jobs
from millrace_runtime.jobs import Reporter
from millrace_tuner.jobs import (
    class_examples,
    classification,
    distillation,
    examples,
    flow,
    grading,
    pair_examples,
    ppo,
    preference,
    preference_examples,
    prompts,
    reading,
    reinforcement,
    reward,
    sequence,
    text_windows,
    token_windows,
)
from millrace_tuner.jobs.preference_examples import Material
from millrace_tuner.jobs.specification import Spec

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec


@dataclass(frozen=True)
class Counted:
    """The fields of the result."""

    training_examples: int
    training_tokens: int
    longest_tokens: int
    truncated_examples: int
    skipped_examples: int
    validation_examples: int


def work(spec: Spec, reporter: Reporter) -> None:
    reporter.report("result", **asdict(COUNT[spec.method.kind](spec)))


def _conversations(spec: Spec) -> Counted:
    training, validation = reading.files(spec, Conversation)
    codec, limit = _codec(spec), reading.sequence_limit(spec)
    learned = examples.encode_all(training, codec, limit, _ignore)
    measured = None
    if validation is not None:
        measured = examples.encode_all(validation, codec, limit, _ignore)
    else:
        examples.split(learned.examples)
    lengths = [len(example.token_ids) for example in learned.examples]
    return Counted(
        training_examples=len(lengths),
        training_tokens=sum(lengths),
        longest_tokens=max(lengths),
        truncated_examples=learned.truncated,
        skipped_examples=learned.skipped,
        validation_examples=0 if measured is None else len(measured.examples),
    )


def _rewards(spec: Spec) -> Counted:
    reward.require_merging(spec)
    return _compared(spec)


def _compared(spec: Spec) -> Counted:
    preference.require_consistent(spec)
    training, validation = reading.files(spec, Preference)
    codec, limit = _codec(spec), reading.sequence_limit(spec)
    return _of_material(
        preference_examples.prepare(
            training,
            validation,
            lambda row: preference_examples.compare(row, codec, limit),
            _ignore,
        )
    )


def _judged(spec: Spec) -> Counted:
    preference.require_consistent(spec)
    training, validation = reading.files(spec, Judged)
    codec, limit = _codec(spec), reading.sequence_limit(spec)
    return _of_material(
        preference_examples.prepare(
            training,
            validation,
            lambda row: preference_examples.judge(row, codec, limit),
            _ignore,
        )
    )


def _of_material(material: Material[Any]) -> Counted:
    """What is held out of the training file counts to it, as the file's owner sees it."""
    is_split = material.heldout_source == "split"
    of_file = [*material.training, *(material.heldout if is_split else ())]
    return Counted(
        training_examples=len(of_file),
        training_tokens=sum(example.tokens for example in of_file),
        longest_tokens=max(example.longest_tokens for example in of_file),
        truncated_examples=material.truncated,
        skipped_examples=material.skipped,
        validation_examples=0 if is_split else len(material.heldout),
    )


def _graded(spec: Spec) -> Counted:
    grader, training, validation = reinforcement.read(spec)
    grading.require_sources(grader)
    reinforcement.open_grader(spec, grader).close()
    answer_tokens = reinforcement.method_of(spec).maximum_completion_tokens
    return _prompts(spec, training, validation, answer_tokens)


def _scored(spec: Spec) -> Counted:
    training, validation = reading.files(spec, Task)
    ppo.verify_reward_model(spec)
    answer_tokens = ppo.method_of(spec).maximum_completion_tokens
    return _prompts(spec, training, validation, answer_tokens)


def _prompts(
    spec: Spec, training: list[Task], validation: list[Task] | None, answer_tokens: int
) -> Counted:
    material = prompts.prepare(
        training,
        validation,
        _codec(spec),
        sequence_tokens=reading.sequence_limit(spec),
        answer_tokens=answer_tokens,
        on_progress=_ignore,
    )
    is_split = material.heldout_source == "split"
    of_file = [*material.training, *(material.heldout if is_split else ())]
    return Counted(
        training_examples=len(of_file),
        training_tokens=sum(len(prompt.token_ids) for prompt in of_file),
        longest_tokens=material.longest_prompt,
        truncated_examples=0,
        skipped_examples=material.skipped,
        validation_examples=0 if is_split else len(material.heldout),
    )


def _distilled(spec: Spec) -> Counted:
    counted = _token_windows(spec) if token_windows.is_meant(spec) else _conversations(spec)
    distillation.verified_teacher(spec)
    return counted


def _token_windows(spec: Spec) -> Counted:
    training, heldout = examples.split(token_windows.read(spec))
    _verify_base(spec)
    return _of_lengths(
        [len(window.token_ids) for window in training],
        [len(window.token_ids) for window in heldout],
        "split",
        truncated=0,
    )


def _windows(spec: Spec) -> Counted:
    """A window is an example; what is replayed is not the file's."""
    texts = text_windows.read(spec)
    text_windows.require_replay(spec)
    _verify_base(spec)
    from millrace_tuner.jobs.codec import load_plain_codec

    codec = load_plain_codec(spec.base_checkpoint_path / "model")
    found = text_windows.prepare(spec, texts, codec, _ignore_both)
    return _of_lengths(
        [len(window.token_ids) for window in found.training],
        [len(window.token_ids) for window in found.heldout],
        found.heldout_source,
        truncated=0,
    )


def _classified(spec: Spec) -> Counted:
    labelled = classification.read(spec)
    _verify_base(spec)
    codec, limit = classification.load_codec(spec, labelled), reading.sequence_limit(spec)
    found = class_examples.prepare(labelled, codec, limit, _ignore_both)
    return _of_lengths(
        [len(text.token_ids) for text in found.training],
        [len(text.token_ids) for text in found.heldout],
        found.heldout_source,
        truncated=found.truncated,
    )


def _pairs(spec: Spec) -> Counted:
    training, validation = sequence.read(spec)
    _verify_base(spec)
    from millrace_tuner.jobs.codec import load_tokenizer

    tokenizer = load_tokenizer(spec.base_checkpoint_path / "model")
    limit = reading.sequence_limit(spec)
    found = pair_examples.prepare(training, validation, tokenizer, limit, _ignore_both)
    return _of_lengths(
        [pair.tokens for pair in found.training],
        [pair.tokens for pair in found.heldout],
        found.heldout_source,
        truncated=found.truncated,
    )


def _of_lengths(
    training: Sequence[int], heldout: Sequence[int], heldout_source: str, *, truncated: int
) -> Counted:
    """From the tokens of each example, where none is skipped."""
    is_split = heldout_source == "split"
    of_file = [*training, *(heldout if is_split else ())]
    return Counted(
        training_examples=len(of_file),
        training_tokens=sum(of_file),
        longest_tokens=max(of_file),
        truncated_examples=truncated,
        skipped_examples=0,
        validation_examples=0 if is_split else len(heldout),
    )


def _verify_base(spec: Spec) -> None:
    flow.verify_base(spec)
    flow.keep_libraries_quiet()


def _codec(spec: Spec) -> "ChatCodec":
    _verify_base(spec)
    from millrace_tuner.jobs.codec import load_codec

    codec = load_codec(spec.base_checkpoint_path / "model")
    examples.require_separable(codec)
    return codec


def _ignore(_done: int) -> None:
    """It takes seconds at most: nobody waits for a count."""


def _ignore_both(_done: int, _total: int) -> None:
    """As above."""


COUNT: Mapping[str, Callable[[Spec], Counted]] = {
    "supervised": _conversations,
    "dpo": _compared,
    "orpo": _compared,
    "kto": _judged,
    "reward": _rewards,
    "reinforcement": _graded,
    "ppo": _scored,
    "distillation": _distilled,
    "pretraining": _windows,
    "classification": _classified,
    "sequence": _pairs,
}
"""How the files of each method are counted."""


if __name__ == "__main__":
    jobs.run("tuner.validate", Spec, work, lambda spec: spec.output_directory)
