"""From compared and judged answers to token ids, exactly as serving computes them.

The prompt is tokenised as one text, whatever was said in it; what the model learns to prefer
begins just after the opening of an answer and ends with the answer's stop token.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from millrace_examples.kinds import Conversation, Judged, Messages, Preference, Tools
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import examples
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.examples import Codec, Example

_REPORT_EVERY_EXAMPLES = 200


class Encoded(Protocol):
    """What a trainer learns from: one row of a file as tokens."""

    @property
    def was_truncated(self) -> bool: ...
    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to learn within the limit."""

    @property
    def digest(self) -> str:
        """Identifies the content, whatever its place in the file."""

    @property
    def tokens(self) -> int:
        """Of all its sequences."""

    @property
    def longest_tokens(self) -> int:
        """Of its longest sequence."""


Row = TypeVar("Row", Preference, Judged)
EncodedT = TypeVar("EncodedT", bound=Encoded)


@dataclass(frozen=True, eq=False)
class Compared:
    """A prompt with the answer that was preferred, and with the one that was not."""

    preferred: Example
    rejected: Example

    @property
    def was_truncated(self) -> bool:
        return self.preferred.was_truncated or self.rejected.was_truncated

    @property
    def is_empty(self) -> bool:
        """An answer lies beyond the limit, or both are the same up to it."""
        both = (self.preferred, self.rejected)
        are_same = self.preferred.digest == self.rejected.digest
        return are_same or not all(answer.is_learned.any() for answer in both)

    @property
    def digest(self) -> str:
        content = self.preferred.digest + self.rejected.digest
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return len(self.preferred.token_ids) + len(self.rejected.token_ids)

    @property
    def longest_tokens(self) -> int:
        return max(len(self.preferred.token_ids), len(self.rejected.token_ids))


@dataclass(frozen=True, eq=False)
class Verdict:
    """A prompt with an answer, which was found good or was not."""

    answer: Example
    is_good: bool

    @property
    def was_truncated(self) -> bool:
        return self.answer.was_truncated

    @property
    def is_empty(self) -> bool:
        return not self.answer.is_learned.any()

    @property
    def digest(self) -> str:
        return f"{self.answer.digest}{int(self.is_good)}"

    @property
    def tokens(self) -> int:
        return len(self.answer.token_ids)

    @property
    def longest_tokens(self) -> int:
        return len(self.answer.token_ids)


@dataclass(frozen=True)
class Material(Generic[EncodedT]):
    """What there is to learn and to measure by, and what was cut from it."""

    training: Sequence[EncodedT]
    heldout: Sequence[EncodedT]
    heldout_source: str
    truncated: int
    skipped: int

    @property
    def counts(self) -> dict[str, Any]:
        """The fields of ``objective.Counts``."""
        return {
            "training_examples": len(self.training),
            "heldout_examples": len(self.heldout),
            "training_tokens": sum(example.tokens for example in self.training),
            "heldout_source": self.heldout_source,
            "truncated_examples": self.truncated,
            "skipped_examples": self.skipped,
        }

    @property
    def longest_tokens(self) -> int:
        return max(example.longest_tokens for example in (*self.training, *self.heldout))


def compare(row: Preference, codec: Codec, limit: int) -> Compared:
    """
    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    return Compared(
        _answer(row.line, row.messages, row.tools, row.preferred, codec, limit),
        _answer(row.line, row.messages, row.tools, row.rejected, codec, limit),
    )


def judge(row: Judged, codec: Codec, limit: int) -> Verdict:
    """
    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    answer = _answer(row.line, row.messages, row.tools, row.completion, codec, limit)
    return Verdict(answer, row.is_good)


def _answer(
    line: int, prompt: Messages, tools: Tools, answer: Messages, codec: Codec, limit: int
) -> Example:
    """The prompt and the answer; its last token is the last that is learned."""
    conversation = Conversation(line, prompt + answer, tools)
    example = examples.encode(conversation, codec, limit, given_messages=len(prompt))
    learned = np.flatnonzero(example.is_learned)
    end = int(learned[-1]) + 1 if len(learned) else 0
    return replace(example, token_ids=example.token_ids[:end], is_learned=example.is_learned[:end])


def reported(
    training: Sequence[Row],
    validation: Sequence[Row] | None,
    reporter: Reporter,
    cancellation: Cancellation,
) -> Callable[[int], None]:
    """What is told of how many examples are tokenised; it stops when the job is to stop."""
    total = len(training) + len(validation or ())

    def on_progress(done: int) -> None:
        cancellation.raise_if_requested()
        if done % _REPORT_EVERY_EXAMPLES == 0:
            reporter.progress("prepare", done, total)

    return on_progress


def prepare(
    training: Sequence[Row],
    validation: Sequence[Row] | None,
    encode: Callable[[Row], EncodedT],
    on_progress: Callable[[int], None],
) -> Material[EncodedT]:
    """Tokenise both files; without a validation file, some of the training file is held out.

    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, NOTHING_TO_LEARN, TOO_FEW_EXAMPLES.
    """
    learned, truncated = _encode_all(training, encode, on_progress)
    skipped = len(training) - len(learned)
    if validation is None:
        kept, heldout = examples.split(learned)
        return Material(kept, heldout, "split", truncated, skipped)
    measured, more = _encode_all(validation, encode, lambda done: on_progress(len(training) + done))
    skipped += len(validation) - len(measured)
    return Material(learned, measured, "validation_file", truncated + more, skipped)


def _encode_all(
    rows: Sequence[Row], encode: Callable[[Row], EncodedT], on_progress: Callable[[int], None]
) -> tuple[list[EncodedT], int]:
    kept: list[EncodedT] = []
    truncated = 0
    for count, row in enumerate(rows, start=1):
        example = encode(row)
        truncated += example.was_truncated
        if not example.is_empty:
            kept.append(example)
        on_progress(count)
    if not kept:
        message = (
            "nothing of an answer, or nothing in which two differ, lies within the longest "
            "sequence that is learned; shorten the examples or tune a model with a longer context"
        )
        raise JobError("NOTHING_TO_LEARN", message)
    return kept, truncated
