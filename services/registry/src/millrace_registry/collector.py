"""Collects the evidence of rollouts: has golden prompts asked, and adds up all of it."""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from millrace_registry import golden, served_parity
from millrace_registry.answer_counts import AnswerCounts, answers_of
from millrace_registry.domain import Rollout, Version
from millrace_registry.evidence import Answers, Evidence
from millrace_registry.evidence_figures import figures
from millrace_registry.evidence_store import EvidenceStore, GoldenScore
from millrace_registry.golden import Answered, Question, Scorer
from millrace_registry.golden_pairs import pairs_of
from millrace_registry.health import Health
from millrace_registry.repository import read_interface
from millrace_registry.scoring import LANES, Key, Round
from millrace_registry.traffic import Seen
from millrace_registry.triton import NotScored
from millrace_runtime import golden as form
from millrace_runtime.content import ContentOutsideRoot, ContentStore
from millrace_runtime.golden import GoldenError
from millrace_runtime.manifest import ManifestError

LOG = logging.getLogger(__name__)

_TRIES = 3

_UNREADABLE = (
    ManifestError,
    ContentOutsideRoot,
    GoldenError,
    FileNotFoundError,
    ValueError,
    KeyError,
)


@dataclass
class _Work:
    """What one rollout's versions are asked.

    Attributes:
        questions: by version and prompt.
        originals: the checkpoint's own scores, by prompt.
        last: as ``golden.last_tokens`` says.
        scores: what is known, by version and prompt.
        failed: how often in a row a question was not answered.
        asked: by version, how many questions ended, and failed. Of those that fail in one round
            one is counted: what ails an engine for a moment ails all that it does then.
        troubled: versions of whose present round one was counted.
        round: those that are being asked.
    """

    questions: Mapping[Key, Question | None] = field(default_factory=dict)
    originals: Mapping[str, float | None] = field(default_factory=dict)
    last: int | None = None
    mismatch: str = ""
    scores: dict[Key, GoldenScore] = field(default_factory=dict)
    failed: dict[Key, int] = field(default_factory=dict)
    asked: dict[int, Answers] = field(default_factory=dict)
    troubled: set[int] = field(default_factory=set)
    round: Round | None = None

    def open(self, version: int) -> list[str]:
        """Prompts that the version has not been scored on."""
        asked = (prompt for number, prompt in self.questions if number == version)
        return [prompt for prompt in asked if (version, prompt) not in self.scores]

    def failed_last(self, version: int) -> bool:
        return any(number == version for number, _ in self.failed)

    def count(self, version: int, *, is_answered: bool) -> None:
        if not is_answered and version in self.troubled:
            return
        if not is_answered:
            self.troubled.add(version)
        before = self.asked.get(version, Answers())
        failures = before.failures + (not is_answered)
        self.asked[version] = Answers(before.requests + 1, failures)


class Collector:
    """Of one controller, in its thread; only questions are asked by others, the ``executor``'s.

    Scores are kept at the next look: whoever takes a rollout over goes on with those that are
    missing.
    """

    def __init__(
        self, store: EvidenceStore, triton: Scorer, content: ContentStore, executor: Executor
    ) -> None:
        self._store = store
        self._triton = triton
        self._content = content
        self._executor = executor
        self._stopped = threading.Event()
        self._work: dict[str, _Work] = {}

    def ask(
        self,
        rollout: Rollout,
        model: str,
        loaded: Sequence[Version],
        healths: Mapping[tuple[str, int], Health],
    ) -> None:
        """Keep what was answered, and have asked what is missing, if both versions answer.

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
        work = self._work_of(rollout, model, by_number)
        if work is None or work.round is None:
            return
        idle = [number for number in sorted(numbers) if work.round.is_idle(number)]
        self._keep(rollout, work, work.round)  # all that the idle ones have answered is among it
        for number in idle:
            lanes = 1 if work.failed_last(number) else LANES
            work.troubled.discard(number)
            work.round.send(number, work.open(number), lanes)
        self._keep(rollout, work, work.round)

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
        work = self._work.get(rollout.id)
        scores, originals = (work.scores.values(), work.originals) if work else ((), {})
        asked = work.asked if work else {}
        return Evidence(
            new=answers_of(seen.new, new.since(AnswerCounts.of(before.get("new", {})))),
            old=answers_of(seen.old, old.since(AnswerCounts.of(before.get("old", {})))),
            pairs=pairs_of(scores, rollout.to_version, rollout.from_version, originals),
            pairs_expected=len(originals) if work else None,
            asked_new=asked.get(rollout.to_version, Answers()),
            asked_old=asked.get(rollout.from_version, Answers()),
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

    def stop(self) -> None:
        """Ask nothing more; what is on its way ends."""
        self._stopped.set()

    def tidy(self, before: datetime) -> None:
        """Drop what no rollout needs any more, and was last reported before.

        Raises:
            LeaseLost
        """
        self._work.clear()  # of those that go on, it is read again
        self._store.forget(before)

    def _keep(self, rollout: Rollout, work: _Work, asked: Round) -> None:
        """Keep what was answered; a question that is not, again and again, as having no score."""
        scores = []
        for key, answered in asked.taken():
            work.count(key[0], is_answered=not isinstance(answered, NotScored))
            if isinstance(answered, NotScored):
                LOG.info("version %d does not score %s: %s", *key, answered)
                work.failed[key] = work.failed.get(key, 0) + 1
                if work.failed[key] < _TRIES:
                    continue
                answered = Answered(math.nan)
            work.failed.pop(key, None)
            scores.append(GoldenScore(*key, answered.score, answered.answer_tokens))
        if scores:
            self._store.keep_scores(rollout, scores)
            work.scores.update({(score.version, score.prompt): score for score in scores})

    def _work_of(
        self, rollout: Rollout, model: str, versions: Mapping[int, Version]
    ) -> _Work | None:
        """None: the disk, or the network, does not let it be read now."""
        work = self._work.get(rollout.id)
        if work is None:
            try:
                work = self._made(rollout, versions)
            except OSError as error:
                LOG.warning("the golden prompts of %s wait: %s", rollout.name, error)
                return None
            answered = partial(self._answered, model, versions, work)
            work.round = Round(self._executor, answered, self._stopped)
            self._work[rollout.id] = work
        return work

    def _answered(
        self, model: str, versions: Mapping[int, Version], work: _Work, key: Key
    ) -> Answered:
        """Of one question; called by the executor.

        Raises:
            NotScored
        """
        question = work.questions[key]
        if question is None:
            return Answered(math.nan)
        return golden.ask(self._triton, model, versions[key[0]], question, work.last)

    def _made(self, rollout: Rollout, by_number: Mapping[int, Version]) -> _Work:
        """Nothing is asked of an artifact without prompts, or one that is damaged.

        Raises:
            OSError: it cannot be read now.
        """
        new, versions = by_number[rollout.to_version], by_number.values()
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
