"""Collects the evidence of rollouts: asks golden prompts, a few a look, and adds up all of it."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from millrace_registry import golden, served_parity
from millrace_registry.answer_counts import AnswerCounts, answers_of
from millrace_registry.domain import Rollout, Version
from millrace_registry.evidence import Evidence
from millrace_registry.evidence_figures import figures
from millrace_registry.evidence_store import EvidenceStore, GoldenScore
from millrace_registry.golden import Question, Scorer
from millrace_registry.golden_pairs import pairs_of
from millrace_registry.health import Health
from millrace_registry.repository import read_interface
from millrace_registry.traffic import Seen
from millrace_registry.triton import NotScored
from millrace_runtime import golden as form
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.golden import GoldenError
from millrace_runtime.manifest import ManifestError

LOG = logging.getLogger(__name__)

LOOK_SECONDS = 0.3
_TRIES = 3

_UNREADABLE = (ManifestError, ContentOutsideRoot, GoldenError, OSError, ValueError, KeyError)


@dataclass
class _Work:
    """What one rollout's versions are asked.

    Attributes:
        questions: by version and prompt.
        originals: the checkpoint's own scores, by prompt.
        last: as ``golden.last_tokens`` says.
        scores: what is known, by version and prompt.
        failed: how often in a row a question was not answered.
    """

    questions: Mapping[tuple[int, str], Question | None] = field(default_factory=dict)
    originals: Mapping[str, float | None] = field(default_factory=dict)
    last: int | None = None
    mismatch: str = ""
    scores: dict[tuple[int, str], GoldenScore] = field(default_factory=dict)
    failed: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def open(self) -> list[tuple[int, str]]:
        return [key for key in self.questions if key not in self.scores]


class Collector:
    """Of one controller, in its thread. Scores are kept as they come: whoever takes a rollout over
    goes on with those that are missing."""

    def __init__(
        self,
        store: EvidenceStore,
        triton: Scorer,
        content: ContentStore,
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._triton = triton
        self._content = content
        self._monotonic = monotonic
        self._work: dict[str, _Work] = {}

    def ask(
        self,
        rollout: Rollout,
        model: str,
        loaded: Sequence[Version],
        healths: Mapping[tuple[str, int], Health],
    ) -> None:
        """Ask a few golden prompts, for ``LOOK_SECONDS`` or at least one, if both versions answer.

        Args:
            model: its name on Triton.
            healths: of all versions, by that name and their number.

        Raises:
            LeaseLost: another registry controls the endpoint.
        """
        numbers = {rollout.to_version, rollout.from_version} - {0}
        healthy = {number for number in numbers if _is_well(healths.get((model, number)))}
        by_number = {
            each.number: each for each in loaded if each.number in healthy and each.interface
        }
        if not rollout.state.is_active or set(by_number) != numbers:
            return
        work = self._work_of(rollout, list(by_number.values()))
        until = self._monotonic() + LOOK_SECONDS
        for key in work.open:
            if not self._ask(rollout, model, by_number[key[0]], key, work):
                return  # an engine that is busy, or silent, is not asked again at once
            if self._monotonic() >= until:
                return

    def mismatch(self, rollout: Rollout, new: Version | None) -> str:
        """How the new version is served otherwise than its artifact says; empty: it is not."""
        known = self._work.get(rollout.id, _Work()).mismatch
        return known if known or new is None else served_parity.mismatch_of(new)

    def evidence(self, rollout: Rollout, seen: Seen) -> Evidence:
        """All that is known since the rollout's present step began; ``seen`` is of the step too."""
        counts = self._store.counts(rollout.tenant, rollout.model)
        before = rollout.answers_before
        new = counts.get(rollout.to_version, AnswerCounts())
        old = counts.get(rollout.from_version, AnswerCounts())
        work = self._work.get(rollout.id, _Work())
        scores = work.scores.values()
        return Evidence(
            new=answers_of(seen.new, new.since(AnswerCounts.of(before.get("new", {})))),
            old=answers_of(seen.old, old.since(AnswerCounts.of(before.get("old", {})))),
            pairs=pairs_of(scores, rollout.to_version, rollout.from_version, work.originals),
            pairs_expected=len(work.originals),
        )

    def entering(self, rollout: Rollout) -> Rollout:
        """The rollout as a step of it begins: what was counted until now is not of the step."""
        counts = self._store.counts(rollout.tenant, rollout.model)
        before = {
            "new": counts.get(rollout.to_version, AnswerCounts()).document(),
            "old": counts.get(rollout.from_version, AnswerCounts()).document(),
        }
        return replace(rollout, answers_before=before, evidence={})

    def shown(self, rollout: Rollout, evidence: Evidence) -> Rollout:
        """The rollout with the figures of its evidence, for users."""
        return replace(rollout, evidence=figures(evidence))

    def tidy(self, before: datetime) -> None:
        """Drop what no rollout needs any more, and was last reported before.

        Raises:
            LeaseLost
        """
        self._work.clear()  # of those that go on, it is read again
        self._store.forget(before)

    def _ask(
        self, rollout: Rollout, model: str, version: Version, key: tuple[int, str], work: _Work
    ) -> bool:
        """Ask one question; False: there was no answer now."""
        question = work.questions[key]
        answered = golden.Answered(math.nan)
        try:
            if question is not None:
                answered = golden.ask(self._triton, model, version, question, work.last)
        except NotScored as error:
            work.failed[key] = work.failed.get(key, 0) + 1
            LOG.info("%s does not score %s: %s", version.name, key[1], error)
            if work.failed[key] < _TRIES:
                return False
        score = GoldenScore(*key, answered.score, answered.answer_tokens)
        self._store.keep_score(rollout, score)
        work.scores[key] = score
        return True

    def _work_of(self, rollout: Rollout, versions: Sequence[Version]) -> _Work:
        work = self._work.get(rollout.id)
        if work is None:
            work = self._made(rollout, versions)
            self._work[rollout.id] = work
        return work

    def _made(self, rollout: Rollout, versions: Sequence[Version]) -> _Work:
        """Nothing is asked of an artifact without prompts, or one that cannot be read."""
        new = next(each for each in versions if each.number == rollout.to_version)
        try:
            artifact = self._content.directory(new.artifact.uri, new.artifact.digest)
            prompts = form.read(artifact)
            tokenizer = golden.digest_of_tokenizer(artifact)
            asked = {each.number: self._questions(prompts, each, tokenizer) for each in versions}
            is_served_so = new.interface == read_interface(artifact)
        except _UNREADABLE as error:
            LOG.warning("%s has no golden prompts: %s", new.name, error)
            return _Work()
        work = _Work(
            {(number, p.name): asked[number][p.name] for p in prompts for number in asked},
            {prompt.name: prompt.original for prompt in prompts},
            golden.last_tokens(*(each.target for each in versions)),
            "" if is_served_so else "its chat template is not served as its artifact has it",
        )
        known = self._store.scores(rollout)
        work.scores.update({(score.version, score.prompt): score for score in known})
        return work

    def _questions(
        self, prompts: Sequence[form.GoldenPrompt], version: Version, tokenizer: str
    ) -> Mapping[str, Question | None]:
        artifact = self._content.directory(version.artifact.uri, version.artifact.digest)
        return golden.questions(prompts, version, artifact, tokenizer)


def _is_well(health: Health | None) -> bool:
    return health is not None and health.answered_at > 0 and not health.failed_checks
