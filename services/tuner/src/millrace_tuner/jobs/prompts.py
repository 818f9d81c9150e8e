"""From tasks to prompts: the ids that serving computes, from which a policy writes its answers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace_examples.kinds import Task
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import examples
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.examples import Codec

_REPORT_EVERY_TASKS = 200


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a policy answers.

    Attributes:
        text: as the model's chat template renders it, with the opening of an answer after it.
        token_ids: of the text; shape (tokens,), int32.
        item: what graders read as ``item``.
        functions: the names of the functions that an answer may call.
    """

    line: int
    text: str
    token_ids: NDArray[np.int32]
    item: Mapping[str, Any]
    functions: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """Identifies the content, whatever its place in the file."""
        item = json.dumps(self.item, sort_keys=True).encode()
        return hashlib.sha256(self.token_ids.tobytes() + item).hexdigest()


@dataclass(frozen=True)
class Material:
    """The prompts to learn from and to measure by, and how many were too long for an answer."""

    training: Sequence[Prompt]
    heldout: Sequence[Prompt]
    heldout_source: str
    skipped: int

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max(len(prompt.token_ids) for prompt in (*self.training, *self.heldout))


def encode(task: Task, codec: Codec) -> Prompt:
    """
    Raises:
        JobError: CHAT_TEMPLATE_UNSUITABLE, naming the line.
    """
    text = examples.prompt_text(task.line, task.messages, task.tools, codec)
    (ids,) = codec.encode([text])
    functions = frozenset(tool["function"]["name"] for tool in task.tools)
    return Prompt(task.line, text, np.asarray(ids, dtype=np.int32), task.item, functions)


def prepare(
    training: Sequence[Task],
    validation: Sequence[Task] | None,
    codec: Codec,
    *,
    sequence_tokens: int,
    answer_tokens: int,
    on_progress: Callable[[int], None],
) -> Material:
    """Tokenise every task; a prompt that leaves no room for an answer is skipped.

    Args:
        sequence_tokens: of a prompt and its answer at most.
        answer_tokens: of an answer at most.
        on_progress: is told how many tasks are done.

    Raises:
        JobError: CONTEXT_TOO_SHORT, CHAT_TEMPLATE_UNSUITABLE, NOTHING_TO_LEARN,
            TOO_FEW_EXAMPLES.
    """
    room = sequence_tokens - answer_tokens
    if room < 1:
        message = (
            f"maximum_completion_tokens is {answer_tokens}, but prompt and answer have "
            f"{sequence_tokens} tokens together; lower it"
        )
        raise JobError("CONTEXT_TOO_SHORT", message)
    total = len(training) + len(validation or ())

    def fitting(tasks: Sequence[Task], done_before: int) -> list[Prompt]:
        kept = []
        for done, task in enumerate(tasks, start=done_before + 1):
            prompt = encode(task, codec)
            if len(prompt.token_ids) <= room:
                kept.append(prompt)
            on_progress(done)
        _require_some(kept, room)
        return kept

    learned = fitting(training, 0)
    if validation is None:
        kept, heldout = examples.split(learned)
        return Material(kept, heldout, "split", total - len(learned))
    measured = fitting(validation, len(training))
    skipped = total - len(learned) - len(measured)
    return Material(learned, measured, "validation_file", skipped)


def progress(reporter: Reporter, cancellation: Cancellation, total: int) -> Callable[[int], None]:
    """An ``on_progress`` that reports, and raises when the job is to stop."""

    def on_progress(done: int) -> None:
        cancellation.raise_if_requested()
        if done % _REPORT_EVERY_TASKS == 0:
            reporter.progress("prepare", done, total)

    return on_progress


def _require_some(kept: Sequence[Prompt], room: int) -> None:
    if not kept:
        message = (
            f"no prompt of a file fits into the {room} tokens beside its answer; shorten the "
            "prompts, lower maximum_completion_tokens or tune a model with a longer context"
        )
        raise JobError("NOTHING_TO_LEARN", message)
