"""How well an artifact does what its deployment is for, beside its original.

The deployment's user names a file of conversations, or of prompts with their completions. Some of
its rows are asked, chosen by the hash of what they say and a seed: the same file and seed give the
same ones. Each is rendered by the checkpoint's own chat template, up to its last answer, which is
the reference; both models answer greedily, and ``task_metrics`` compares. What the original says
is kept for the other artifacts of its checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoTokenizer

from millrace_compressor.jobs import evaluate, report, task_metrics
from millrace_compressor.jobs.answers import Ids
from millrace_compressor.jobs.format import Answering
from millrace_examples.kinds import Conversation
from millrace_examples.reading import ExamplesError, read
from millrace_runtime import parity
from millrace_runtime.jobs import JobError
from millrace_runtime.parity import Probe

if TYPE_CHECKING:
    from millrace_compressor.jobs.compress import Spec

INVALID = "TASK_DATA_INVALID"
_NAME = "task's file"


class Task(BaseModel):
    """``service.proto``: Task; ``path`` and ``digest`` are its content's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    digest: str
    file: str = ""
    metric: task_metrics.Metric
    rows: int = Field(64, ge=1)
    max_answer_tokens: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Row:
    prompt: Ids
    reference: str


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes:
        skipped: rows that cannot be, among those that were looked at.
        stops: the tokens that end an answer.
        tokenizer: transformers', of the checkpoint.
    """

    rows: Sequence[Row]
    skipped: int
    stops: frozenset[int]
    tokenizer: Any

    @property
    def digest(self) -> str:
        """Of the prompts' token ids and the references."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(np.array(row.prompt, np.int64).tobytes())
            digest.update(f"\0{row.reference}\0".encode())
        return f"sha256:{digest.hexdigest()}"

    def texts(self, answers: Sequence[Ids]) -> list[str]:
        decoded = self.tokenizer.batch_decode(
            [list(ids) for ids in answers], skip_special_tokens=True
        )
        return [str(text).strip() for text in decoded]


def measured(spec: "Spec", original: Answering, artifact: Answering) -> dict[str, Any]:
    """The measurement ``task``, of compressions that name one (``service.proto``: TaskMeasurement).

    Raises:
        JobError: as ``questions``; TASK_NOT_ANSWERED.
    """
    task = spec.task
    if task is None:
        return {}
    asked = questions(task, spec.checkpoint_path / "model")
    prompts = [row.prompt for row in asked.rows]
    references = [row.reference for row in asked.rows]

    def answers(model: Answering) -> list[list[int]]:
        return model.answer(prompts, task.max_answer_tokens, asked.stops)

    key = ["answers", spec.checkpoint_digest, asked.digest, task.max_answer_tokens]
    kept = report.kept(spec.originals_directory, key, lambda: {"answers": answers(original)})
    before, after = asked.texts(kept["answers"]), asked.texts(answers(artifact))
    same = [one == other for one, other in zip(before, after, strict=True)]
    found = {
        "metric": task.metric,
        "original_score": task_metrics.mean_score(task.metric, before, references),
        "artifact_score": task_metrics.mean_score(task.metric, after, references),
        "rows": len(references),
        "same_answers": sum(same) / len(same),
        "skipped_rows": asked.skipped,
        "max_answer_tokens": task.max_answer_tokens,
        "seed": task.seed,
        "digest": asked.digest,
        "file": task.file,
    }
    return {"task": found}


@lru_cache(maxsize=1)  # a job asks the same of every candidate that it makes
def questions(task: Task, model: Path) -> Questions:
    """At most ``task.rows`` rows, in the order of their hashes.

    Raises:
        JobError: TASK_DATA_INVALID, when the file cannot be read as conversations, or none of
            them can be asked: it says why.
    """
    try:
        conversations = read(task.path, task.digest, Conversation, _NAME)
    except ExamplesError as error:
        raise JobError(INVALID, str(error)) from error
    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    room = evaluate.context_length(model) - task.max_answer_tokens
    rows, refused = [], []
    for conversation in _by_hash(conversations, task.seed):
        try:
            rows.append(_row(conversation, tokenizer, room))
        except (TemplateError, TypeError, ValueError) as error:
            refused.append(f"line {conversation.line}: {error}")
        if len(rows) == task.rows:
            break
    if not rows:
        raise JobError(INVALID, f"no row of the {_NAME} can be asked; {refused[0]}")
    return Questions(rows, len(refused), _stops(model, tokenizer), tokenizer)


def _by_hash(conversations: Sequence[Conversation], seed: int) -> Iterator[Conversation]:
    """What is said twice is asked once."""
    found: dict[bytes, Conversation] = {}
    for conversation in conversations:
        said = json.dumps([seed, conversation.messages, conversation.tools], sort_keys=True)
        found.setdefault(hashlib.sha256(said.encode()).digest(), conversation)
    return (found[key] for key in sorted(found))


def _row(conversation: Conversation, tokenizer: Any, room: int) -> Row:
    """
    Raises:
        TemplateError, TypeError, ValueError: why it cannot be asked.
    """
    *asked, last = conversation.messages
    reference = last.get("content")
    if last["role"] != "assistant" or not isinstance(reference, str) or not reference.strip():
        raise ValueError("its last message is no answer in text")
    prompt = _prompt(asked, conversation, tokenizer)
    if not 0 < len(prompt) <= room:
        raise ValueError(f"its prompt has {len(prompt)} tokens, and {room} have room")
    return Row(tuple(prompt), reference)


def _prompt(asked: Sequence[dict[str, Any]], row: Conversation, tokenizer: Any) -> list[int]:
    """As the model is asked when it is served: its template's text, or a plain text as it is."""
    if tokenizer.chat_template:
        text = parity.render(tokenizer, Probe("task", asked, row.tools))
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    elif [message["role"] for message in asked] == ["user"]:
        ids = tokenizer(str(asked[0]["content"]), verbose=False)["input_ids"]
    else:
        raise ValueError("the model has no chat template, and can be asked single texts only")
    return [int(token) for token in ids]


def _stops(model: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens at which the model's generation stops."""
    path = model / "generation_config.json"
    found = json.loads((path if path.exists() else model / "config.json").read_text())
    told = found.get("eos_token_id")
    if told is None:
        told = tokenizer.eos_token_id
    if told is None:
        return frozenset()
    return frozenset([told] if isinstance(told, int) else told)
