"""Two gateways with one database of batches, and what must hold whatever happens to them."""

import asyncio
import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from batch_parts import (
    TURN_SECONDS,
    MemoryFiles,
    Model,
    SteppedWorker,
    jsonl,
    order,
    request,
)
from sqlalchemy import delete, select

from millrace_gateway.batches.domain import NEXT, Batch, Status
from millrace_gateway.batches.store import BatchStore
from millrace_gateway.store import BATCH_LINES, BATCHES, OUTBOX
from millrace_runtime import cloudevent
from millrace_runtime.database import Database
from millrace_runtime.outbox import Outbox
from millrace_testkit.clock import FakeClock

LEASE_SECONDS = 15
END_FACTS = {
    Status.COMPLETED: "batch.completed",
    Status.FAILED: "batch.failed",
    Status.CANCELLED: "batch.cancelled",
    Status.EXPIRED: "batch.expired",
}


def _reachable() -> dict[Status, set[Status]]:
    """Every state that a batch can be in after one it was in."""
    found = {status: {status} for status in Status}
    for _ in Status:
        for status in Status:
            for later in NEXT[status]:
                found[status] |= found[later]
    return found


REACHABLE = _reachable()


class World:
    """One batch, perhaps a rival of another tenant's, and two workers that may run them.

    Attributes:
        kept: the answers that were seen in the database, by line.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        count: int = 3,
        wrong: Set[int] = frozenset(),
        busy: Set[int] = frozenset(),
        concurrency: int = 2,
    ) -> None:
        with database.transaction() as connection:
            for table in (BATCH_LINES, BATCHES, OUTBOX):
                connection.execute(delete(table))
        self.count = count
        self.clock = FakeClock()
        self.loop = asyncio.new_event_loop()
        self.files = MemoryFiles({"file-in": jsonl([request(f"line-{n}") for n in range(count)])})
        self.kept: dict[int, str] = {}
        self.is_cancelled = False
        self._database = database
        self.model = Model({f"line-{n}" for n in wrong}, {f"line-{n}": 1 for n in busy})
        self.workers = [
            SteppedWorker(
                self.loop, self._store(n), self.files, self.model, folder, self.clock, concurrency
            )
            for n in range(2)
        ]
        self.batch = self.workers[0].store.add(order("file-in"), "request", "digest")

    def work(self, worker: int, count: int, choice: int = 0) -> None:
        """Some things happen, of those that are about to; an idle worker looks for work."""
        stepped = self.workers[worker]
        if not stepped.is_busy:
            stepped.claim()
        for _ in range(count):
            if stepped.is_busy:
                stepped.step(choice)
                self.note()

    def rival_comes(self) -> None:
        """Another tenant's batch of the same lines, once."""
        rival = order("file-in", tenant="rival")
        self.workers[1].store.add(rival, "request", "digest")

    def turn_ends(self) -> None:
        """Before the leases do: whoever lives would have renewed them."""
        self.clock.advance(TURN_SECONDS + 1)
        for worker in self.workers:
            if worker.is_busy:
                worker.renew()

    def lease_ends(self) -> None:
        self.clock.advance(LEASE_SECONDS + 1)

    def a_day_passes(self) -> None:
        self.clock.advance(24 * 3600)

    def cancel(self) -> None:
        batch = self.workers[1].store.cancel("default", self.batch.id)
        assert batch is not None
        self.is_cancelled |= batch.status is Status.CANCELLING

    def delete_input(self) -> None:
        self.files.inputs.clear()

    def note(self) -> None:
        """States go forward, counts are right, and an answer that was kept stays."""
        before, self.batch = self.batch, self._load()
        assert self.batch.status in REACHABLE[before.status]
        rows = self._rows()
        if self.batch.status.is_final:
            assert not rows
            return
        answers = {number: answer for number, answer in rows.items() if answer is not None}
        for number, answer in answers.items():
            assert self.kept.setdefault(number, answer) == answer
        assert self.batch.completed + self.batch.failed == len(answers)
        assert self.batch.total in (0, len(rows))
        assert self.batch.usage.output_tokens == 3 * self.batch.completed

    def finish(self) -> Batch:
        """Kill what runs, let one worker do all there is, and look at what came of it."""
        for worker in self.workers:
            worker.kill()
        self.lease_ends()
        while self.workers[0].claim():
            self.workers[0].run_to_end()
        self.note()
        self.loop.close()
        self._check_end()
        return self.batch

    def _check_end(self) -> None:
        batch = self.batch
        assert batch.status.is_final and batch.finish_time is not None
        assert (batch.status is Status.CANCELLED) == self.is_cancelled
        assert self._facts() == ["batch.created", END_FACTS[batch.status]]
        files = [one for one in (batch.output_file_id, batch.error_file_id) if one is not None]
        made = [f"file-{name}" for name in self.files.kept if name.startswith(batch.id)]
        assert sorted(made) == sorted(files), "no file is made twice"
        output = self.files.lines(batch.output_file_id)
        mistakes = self.files.lines(batch.error_file_id)
        assert len(output) == batch.completed
        told = {one["custom_id"]: one for one in [*output, *mistakes]}
        assert len(told) == len(output) + len(mistakes) == batch.total
        if batch.total:
            assert set(told) == {f"line-{number}" for number in range(self.count)}
        for number, answer in self.kept.items():
            assert told[f"line-{number - 1}"] == json.loads(answer)
        self._check_reasons(mistakes)

    def _check_reasons(self, mistakes: list[Any]) -> None:
        """Why lines were not executed is how the batch ended."""
        not_executed = [one["error"]["code"] for one in mistakes if one["response"] is None]
        codes = set(not_executed) - {"input_file_deleted"}
        if self.batch.status is Status.COMPLETED:
            assert self.batch.completed + self.batch.failed == self.batch.total and not codes
        else:
            assert codes <= {f"batch_{self.batch.status}"}

    def _store(self, number: int) -> BatchStore:
        return BatchStore(
            self._database,
            Outbox(OUTBOX),
            owner=f"elsewhere/1/{number}/5",
            lease_seconds=LEASE_SECONDS,
            now=self.clock,
        )

    def _load(self) -> Batch:
        batch = self.workers[0].store.get("default", self.batch.id)
        assert batch is not None
        return batch

    def _rows(self) -> dict[int, str | None]:
        query = select(BATCH_LINES).where(BATCH_LINES.c.batch_id == self.batch.id)
        with self._database.transaction() as connection:
            return {row.number: row.answer for row in connection.execute(query)}

    def _facts(self) -> list[str]:
        with self._database.transaction() as connection:
            pending = Outbox(OUTBOX).pending(connection, "any")
        events = [cloudevent.from_json(fact.document) for fact in pending]
        return [one.fact.fact for one in events if one.subject.startswith("millrace.default.")]
