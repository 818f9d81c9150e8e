"""From texts with labels to token ids with the numbers of their classes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from millrace_examples.kinds import Classified, Conversation
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs import examples

if TYPE_CHECKING:
    from millrace_tuner.jobs.codec import ChatCodec

MAXIMUM_CLASSES = 1000
_REPORT_EVERY_EXAMPLES = 200


@dataclass(frozen=True)
class Labelled:
    """What the files of a job hold; ``labels`` are those of the training file, in order."""

    training: Sequence[Classified]
    validation: Sequence[Classified] | None
    labels: Sequence[str]

    @property
    def has_conversations(self) -> bool:
        return any(row.messages for row in (*self.training, *(self.validation or ())))


@dataclass(frozen=True, eq=False)
class ClassExample:
    """One text; ``token_ids`` has shape (tokens,), ``number`` is that of its class."""

    token_ids: NDArray[np.int32]
    number: int
    was_truncated: bool

    @property
    def digest(self) -> str:
        """Identifies the content, whatever its place in the file."""
        return hashlib.sha256(self.token_ids.tobytes() + f"|{self.number}".encode()).hexdigest()


@dataclass(frozen=True)
class Material:
    """What there is to learn and to measure by, and how many texts had to be cut."""

    training: Sequence[ClassExample]
    heldout: Sequence[ClassExample]
    heldout_source: str
    truncated: int


def labelled(training: Sequence[Classified], validation: Sequence[Classified] | None) -> Labelled:
    """
    Raises:
        JobError: TOO_FEW_CLASSES, TOO_MANY_CLASSES; INVALID_EXAMPLE when a label of the
            validation file is none of the training file's, with its line.
    """
    labels = [str(label) for label in _sorted({row.label for row in training})]
    labels = list(dict.fromkeys(labels))  # 1 and "1" are one class
    if len(labels) == 1:
        message = f"the training file has one label, {labels[0]!r}; at least two can be told apart"
        raise JobError("TOO_FEW_CLASSES", message)
    if len(labels) > MAXIMUM_CLASSES:
        message = (
            f"the training file has {len(labels)} labels, and {MAXIMUM_CLASSES} are allowed; "
            "labels must be classes that come again, not texts"
        )
        raise JobError("TOO_MANY_CLASSES", message)
    for row in validation or ():
        if str(row.label) not in labels:
            message = (
                f"validation file, line {row.line} (label): {row.label!r} is no label of the "
                "training file; add examples of it there or correct the line"
            )
            raise JobError("INVALID_EXAMPLE", message)
    return Labelled(training, validation, labels)


def _sorted(labels: set[str | int]) -> list[str | int]:
    """Numbers as numbers, before words."""
    return sorted(labels, key=lambda label: (isinstance(label, str), label))


def prepare(
    given: Labelled, codec: "ChatCodec", limit: int, on_progress: Callable[[int, int], None]
) -> Material:
    """Tokenise the files, ``limit`` tokens a text at most.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, TOO_FEW_EXAMPLES.
    """
    numbers = {label: number for number, label in enumerate(given.labels)}
    rows = [*given.training, *(given.validation or ())]
    encoded = []
    for done, row in enumerate(rows, start=1):
        encoded.append(encode(row, numbers[str(row.label)], codec, limit))
        if done % _REPORT_EVERY_EXAMPLES == 0:
            on_progress(done, len(rows))
    truncated = sum(example.was_truncated for example in encoded)
    learned, measured = encoded[: len(given.training)], encoded[len(given.training) :]
    if given.validation is None:
        return Material(*examples.split(learned), "split", truncated)
    return Material(learned, measured, "validation_file", truncated)


def encode(row: Classified, number: int, codec: "ChatCodec", limit: int) -> ClassExample:
    """A conversation is what the chat template makes of it, a text what the tokenizer does (with
    the marks that it puts around a whole text); the first ``limit`` tokens stay.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    if row.messages:
        conversation = Conversation(row.line, row.messages)
        text = "".join(segment.text for segment in examples.cut(conversation, codec))
        (ids,) = codec.encode([text])
    else:
        ids = codec.tokenizer(row.text, verbose=False)["input_ids"]
    token_ids = np.asarray(ids, dtype=np.int32)
    return ClassExample(token_ids[:limit], number, len(token_ids) > limit)
