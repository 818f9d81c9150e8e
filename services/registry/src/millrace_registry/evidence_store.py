"""Where the evidence of rollouts is kept: counts that gateways report, scores of golden prompts."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import add

from sqlalchemy import Connection, delete, select

from millrace_registry.answer_counts import AnswerCounts
from millrace_registry.domain import UNENDED, Rollout
from millrace_registry.schema import ANSWER_COUNTS, GOLDEN_SCORES, ROLLOUTS
from millrace_registry.upsert import insert
from millrace_runtime.database import Database

Fenced = Callable[[], AbstractContextManager[Connection]]
"""Opens a transaction that only the controller of the endpoint can commit."""


@dataclass(frozen=True)
class GoldenScore:
    """How one version did on one prompt.

    Attributes:
        score: mean log-probability in nats a token; NaN when it was not scored to a finite number.
        answer_tokens: of its own greedy answer; None: it was not asked for one.
    """

    version: int
    prompt: str
    score: float
    answer_tokens: int | None = None


class EvidenceStore:
    """``fenced``: what the controller writes; gateways' reports need no lease."""

    def __init__(self, database: Database, fenced: Fenced, now: Callable[[], datetime]) -> None:
        self._database = database
        self._fenced = fenced
        self._now = now

    def report(
        self, gateway: str, counted: Sequence[tuple[tuple[str, str, int], AnswerCounts]]
    ) -> None:
        """Take the counts of one life of one gateway, by (tenant, model, version)."""
        with self._database.transaction() as connection:
            for (tenant, model, version), counts in counted:
                keys = {"gateway": gateway, "tenant": tenant, "model": model, "version": version}
                values = {"document": counts.document(), "update_time": self._now()}
                statement = insert(connection, ANSWER_COUNTS).values(**keys, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=list(keys), set_=values)
                )

    def counts(self, tenant: str, model: str) -> Mapping[int, AnswerCounts]:
        """What all gateways have counted of each version."""
        columns = (ANSWER_COUNTS.c.version, ANSWER_COUNTS.c.document)
        query = select(*columns).where(
            ANSWER_COUNTS.c.tenant == tenant, ANSWER_COUNTS.c.model == model
        )
        found: dict[int, list[AnswerCounts]] = {}
        with self._database.transaction() as connection:
            for row in connection.execute(query):
                found.setdefault(row.version, []).append(AnswerCounts.of(row.document))
        return {version: reduce(add, each) for version, each in found.items()}

    def scores(self, rollout: Rollout) -> list[GoldenScore]:
        """All that have been kept of a rollout."""
        query = select(GOLDEN_SCORES).where(GOLDEN_SCORES.c.rollout == rollout.id)
        with self._database.transaction() as connection:
            return [
                GoldenScore(
                    row.version,
                    row.prompt,
                    math.nan if row.score is None else row.score,
                    row.answer_tokens,
                )
                for row in connection.execute(query)
            ]

    def keep_scores(self, rollout: Rollout, scores: Sequence[GoldenScore]) -> None:
        """Keep scores for whoever goes on with the rollout; again is as once.

        Raises:
            LeaseLost: another registry controls the endpoint.
        """
        with self._fenced() as connection:
            for score in scores:
                keys = {"rollout": rollout.id, "version": score.version, "prompt": score.prompt}
                finite = score.score if math.isfinite(score.score) else None
                values = {"score": finite, "answer_tokens": score.answer_tokens}
                statement = insert(connection, GOLDEN_SCORES).values(**keys, **values)
                connection.execute(
                    statement.on_conflict_do_update(index_elements=list(keys), set_=values)
                )

    def forget(self, before: datetime) -> None:
        """Drop scores of rollouts that have ended, and counts that nobody has reported since.

        Those of models that are being rolled out stay, since a step is judged by differences.

        Raises:
            LeaseLost: another registry controls the endpoint.
        """
        is_open = ROLLOUTS.c.state.in_(UNENDED)
        judged = select(ROLLOUTS.c.id).where(
            ROLLOUTS.c.tenant == ANSWER_COUNTS.c.tenant,
            ROLLOUTS.c.model == ANSWER_COUNTS.c.model,
            is_open,
        )
        is_old = ANSWER_COUNTS.c.update_time < before
        unended = select(ROLLOUTS.c.id).where(is_open)
        with self._fenced() as connection:
            connection.execute(delete(ANSWER_COUNTS).where(is_old, ~judged.exists()))
            connection.execute(delete(GOLDEN_SCORES).where(GOLDEN_SCORES.c.rollout.not_in(unended)))
