"""How a version scores golden prompts (``millrace_runtime.golden``), through Triton.

A version is asked in its own tokens: by its own tokenizer where that differs from the one that the
prompts were cut with, and by its own chat template as it is served, so that a template that is
broken shows in the score.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from millrace_registry.domain import Interface, Version
from millrace_registry.served_parity import ONE_BY_ONE
from millrace_runtime import chat_template, manifest
from millrace_runtime.errors import MillraceError
from millrace_runtime.golden import TOKENIZER_NAME, GoldenPrompt
from millrace_runtime.parity import RENDERED_ON, Scores

ANSWER_TOKENS = 12
_ANSWERED = 6  # so many of the prompts are answered too


class Scorer(Protocol):
    """One Triton endpoint (``triton.Triton``)."""

    def score(self, model: str, version: int, token_ids: Sequence[int]) -> Scores: ...
    def score_last(self, model: str, version: int, token_ids: Sequence[int]) -> float | None: ...
    def answer(self, model: str, version: int, token_ids: Sequence[int], limit: int) -> int: ...


@dataclass(frozen=True)
class Question:
    """A golden prompt in one version's tokens.

    Attributes:
        continuation: how many of the tokens are scored, the last ones.
        tokens: by which the sum of their scores is divided; the same for both versions.
        answers: the version is to answer the prompt too.
    """

    prompt: str
    token_ids: Sequence[int]
    continuation: int
    tokens: int
    answers: bool = False


@dataclass(frozen=True)
class Answered:
    """``score``: mean log-probability in nats a token; NaN when not a finite number."""

    score: float
    answer_tokens: int | None = None


def questions(
    prompts: Sequence[GoldenPrompt], version: Version, artifact: Path, tokenizer_digest: str
) -> Mapping[str, Question | None]:
    """By the prompt's name; None: the version cannot be asked, which is its fault.

    Args:
        tokenizer_digest: of the tokenizer that the prompts were cut with.

    Raises:
        ManifestError, OSError: the artifact cannot be read.
    """
    assert version.interface is not None, "what is loaded was read"
    is_same = digest_of_tokenizer(artifact) == tokenizer_digest
    needs_text = not is_same or any(prompt.messages is not None for prompt in prompts)
    path = artifact / TOKENIZER_NAME
    tokenizer = Tokenizer.from_file(str(path)) if needs_text and path.exists() else None
    asked = _Asked(version.interface, tokenizer, is_same)
    return {
        prompt.name: asked.question(prompt, answers=number < _ANSWERED)
        for number, prompt in enumerate(prompts)
    }


def digest_of_tokenizer(artifact: Path) -> str:
    """Empty when there is none.

    Raises:
        ManifestError
    """
    entries = {entry.path: entry.sha256 for entry in manifest.read(artifact)[0].files}
    return entries.get(TOKENIZER_NAME, "")


@dataclass(frozen=True)
class _Asked:
    """How one version is asked. ``tokenizer``: None when it is not needed, or there is none."""

    interface: Interface
    tokenizer: Tokenizer | None
    is_same: bool

    def question(self, prompt: GoldenPrompt, answers: bool) -> Question | None:
        before, after = self._prompt_ids(prompt), self._continuation_ids(prompt)
        if not before or not after:
            return None
        if len(before) + max(len(after), ANSWER_TOKENS) > self.interface.context_length:
            return None
        count = len(prompt.continuation_ids)
        return Question(prompt.name, [*before, *after], len(after), count, answers)

    def _prompt_ids(self, prompt: GoldenPrompt) -> Sequence[int]:
        if prompt.messages is not None and self.tokenizer is not None:
            text = self._rendered(prompt)
        elif self.is_same:
            return prompt.prompt_ids
        else:
            text = prompt.prompt
        return self._encode(text)

    def _continuation_ids(self, prompt: GoldenPrompt) -> Sequence[int]:
        return prompt.continuation_ids if self.is_same else self._encode(prompt.continuation)

    def _rendered(self, prompt: GoldenPrompt) -> str:
        """Empty when the template refuses the conversation."""
        on = datetime.datetime(*RENDERED_ON, tzinfo=datetime.UTC)
        try:
            return chat_template.render(
                self.interface.chat_template,
                prompt.messages or (),
                bos_token=self.interface.bos_token,
                eos_token=self.interface.eos_token,
                other_tokens=self.interface.other_tokens,
                tools=prompt.tools,
                now=lambda: on,
            )
        except MillraceError:
            return ""

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return []
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def last_tokens(*targets: str) -> int | None:
    """How many of a continuation's tokens are scored, when one of the engines gives the
    log-probability of one token at a time; None: all of them."""
    counts = [ONE_BY_ONE[target] for target in targets if target in ONE_BY_ONE]
    return min(counts) if counts else None


def ask(
    triton: Scorer, model: str, version: Version, question: Question, last: int | None
) -> Answered:
    """Score one prompt; ``model`` is its name on Triton, ``last`` as ``last_tokens`` says.

    Raises:
        NotScored: the engine gave no scores; it may do so later.
    """
    count = min(question.continuation, last or question.continuation)
    scores = _scores(triton, model, version, question.token_ids, count)
    tokens = question.tokens if last is None else count
    answered = None
    if question.answers:
        prompt = question.token_ids[: len(question.token_ids) - question.continuation]
        answered = triton.answer(model, version.number, prompt, ANSWER_TOKENS)
    return Answered(_mean(scores, tokens), answered)


def _scores(triton: Scorer, model: str, version: Version, ids: Sequence[int], count: int) -> Scores:
    """Of the last ``count`` tokens."""
    if version.target not in ONE_BY_ONE:
        return triton.score(model, version.number, ids)[-count:]
    ends = range(len(ids) - count + 1, len(ids) + 1)
    return [triton.score_last(model, version.number, ids[:end]) for end in ends]


def _mean(scores: Scores, tokens: int) -> float:
    if not scores or any(score is None for score in scores):
        return math.nan
    total = math.fsum(score for score in scores if score is not None)
    return total / tokens if math.isfinite(total) else math.nan
