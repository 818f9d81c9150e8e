"""Carries one batch from wherever it stands to its end.

Every step reads what the database says and writes under the batch's lease, so whoever goes on
after a crash, here or in another gateway, goes on where it was: an answer that was kept is kept,
one that was not is asked for again, and the files are made once (their request ids are the
batch's own).
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import orjson
from prometheus_client import Counter

from millrace_gateway.batches import input as batch_input
from millrace_gateway.batches import output as batch_output
from millrace_gateway.batches import turns
from millrace_gateway.batches.ask import Answered
from millrace_gateway.batches.domain import WINDOW, Batch, BatchError, LineAnswer, Status
from millrace_gateway.batches.input import InputLimits
from millrace_gateway.batches.store import BatchStore
from millrace_runtime import telemetry
from millrace_runtime.errors import FailedPrecondition, InvalidArgument, NotFound
from millrace_runtime.leases import Lease

_LINES_AT_ONCE = 1000
_LONGEST_WAIT_SECONDS = 30.0
_LOOK_UP = timedelta(seconds=1)

_LINES = Counter("millrace_batch_lines_total", "Lines of batches, answered.", ["outcome"])
_RETRIES = Counter(
    "millrace_batch_line_retries_total", "Times a batch's line was put off.", ["status"]
)

_Result = TypeVar("_Result")
Request = tuple[int, dict[str, Any]]


class Files(Protocol):
    """Where inputs and outputs are; ``files.DataFiles`` is one."""

    async def fetch(self, tenant: str, file_id: str, target: IO[bytes]) -> None: ...

    async def keep(
        self, tenant: str, filename: str, request_id: str, source: IO[bytes], size_bytes: int
    ) -> str: ...


class Ask(Protocol):
    """Answers one request; ``ask.Desk.ask`` does."""

    async def __call__(self, tenant: str, key_id: str, path: str, body: bytes) -> Answered: ...


class InThread(Protocol):
    """Runs what blocks without blocking the loop; ``asyncio.to_thread`` does."""

    def __call__(self, call: Callable[..., _Result], /, *arguments: Any) -> Awaitable[_Result]: ...


@dataclass(frozen=True)
class Pace:
    """How a batch's lines are asked.

    Attributes:
        concurrency: lines of one batch in progress at once.
        patience_seconds: how long a line is asked again whose engine fails (503), before that
            is its answer. What merely has to wait (429) waits as long as the batch lasts.
        turn_seconds: how long a batch keeps its place at least when other tenants wait.
    """

    concurrency: int
    patience_seconds: float
    turn_seconds: float


class _TurnOver(Exception):
    """The batch makes room for another tenant's; it has lines left."""


class Turn:
    """Whether a batch goes on or makes room: asked between lines, looked up once a second.

    It lasts ``least`` from the first line on, so that each turn gets somewhere, however long
    the input takes to be fetched.
    """

    def __init__(
        self,
        look_up: Callable[[], Awaitable[bool]],
        least: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        self._look_up = look_up
        self._now = now
        self._due = now() + least
        self.is_over = False

    async def ends(self) -> bool:
        """Whether to stop here. Once it has ended, everybody stops."""
        if not self.is_over and self._now() >= self._due:
            self._due = self._now() + _LOOK_UP
            # Not assigned as it is: a look-up that was slow must not take another's answer back.
            if await self._look_up():
                self.is_over = True
        return self.is_over


class BatchRunner:
    """Runs batches, one a call.

    Args:
        find_model: raises NotFound when a tenant has no such model.
        scratch: where files lie while they are read and written; without names, so that
            nothing is left of them when the process ends.
    """

    def __init__(
        self,
        store: BatchStore,
        files: Files,
        ask: Ask,
        find_model: Callable[[str, str], object],
        scratch: Path,
        limits: InputLimits,
        pace: Pace,
        *,
        ring: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        in_thread: InThread = asyncio.to_thread,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._files = files
        self._ask = ask
        self._find_model = find_model
        self._scratch = scratch
        self._limits = limits
        self._pace = pace
        self._ring = ring
        self._now = now
        self._in_thread = in_thread
        self._sleep = sleep
        self._monotonic = monotonic
        self._turn = timedelta(seconds=pace.turn_seconds)
        # By batch and line, in monotonic seconds: of lines that are put off over a turn's end.
        self._patience_ends: dict[tuple[str, int], float] = {}

    async def run(self, lease: Lease) -> None:
        """Work until the batch has ended, or makes room for another tenant's.

        Raises:
            LeaseLost: it was taken over, or cancelled; whoever claims it next goes on.
            MillraceError: a service does not answer; it is to be tried again.
        """
        batch = await self._in_thread(self._store.load, lease)
        attributes: dict[str, Any] = {"millrace.batch": batch.id}
        with telemetry.span("batch", traceparent=batch.traceparent, attributes=attributes):
            try:
                while not batch.status.is_final:
                    batch = await self._step(lease, batch)
            except _TurnOver:
                await self._in_thread(self._store.release, lease)
                self._forget_old_lines()
        self._ring()

    async def _step(self, lease: Lease, batch: Batch) -> Batch:
        if batch.status in (Status.FINALIZING, Status.CANCELLING):
            return await self._finish(lease, batch)
        if self._now() >= batch.expire_time:
            return await self._in_thread(self._store.finalize, lease)
        if batch.status is Status.VALIDATING:
            return await self._validate(lease, batch)
        return await self._execute(lease, batch)

    async def _validate(self, lease: Lease, batch: Batch) -> Batch:
        try:
            async with self._input(batch) as source:
                found = await self._in_thread(
                    batch_input.check, source, batch.order.endpoint, self._limits
                )
        except (NotFound, FailedPrecondition) as error:
            errors = [BatchError("invalid_input_file", str(error), param="input_file_id")]
            return await self._in_thread(self._store.fail, lease, errors)
        errors = found.errors or self._model_errors(batch.order.tenant, found.model)
        if errors:
            return await self._in_thread(self._store.fail, lease, errors)
        for start in range(0, len(found.lines), _LINES_AT_ONCE):
            lines = found.lines[start : start + _LINES_AT_ONCE]
            await self._in_thread(self._store.add_lines, lease, lines)
        return await self._in_thread(self._store.start, lease, found.model, len(found.lines))

    def _model_errors(self, tenant: str, model: str) -> list[BatchError]:
        try:
            self._find_model(tenant, model)
        except NotFound as error:
            return [BatchError("model_not_found", str(error), param="body.model")]
        return []

    async def _execute(self, lease: Lease, batch: Batch) -> Batch:
        pending = await self._in_thread(self._store.unanswered, lease)
        remaining_seconds = (batch.expire_time - self._now()).total_seconds()
        try:
            async with asyncio.timeout(remaining_seconds), self._input(batch) as source:
                requests = batch_input.chosen(source, pending)
                turn = Turn(lambda: self._is_leaving(batch), self._turn, self._now)
                await self._all_at_once(lease, batch, requests, turn)
        except TimeoutError:
            if self._now() < batch.expire_time:  # it was somebody else's
                raise
        except (NotFound, FailedPrecondition):
            await self._give_up(lease, batch, pending)
        return await self._in_thread(self._store.finalize, lease)

    async def _is_leaving(self, batch: Batch) -> bool:
        standing = await self._in_thread(self._store.standing)
        return batch.id in turns.leaving(standing, self._turn, self._now())

    async def _all_at_once(
        self, lease: Lease, batch: Batch, requests: Iterator[Request], turn: Turn
    ) -> None:
        """Ask all requests, some at a time. The first failure ends all of them.

        Raises:
            _TurnOver: there are requests left, and none under way.
        """
        asking = [
            asyncio.ensure_future(self._some(lease, batch, requests, turn))
            for _ in range(self._pace.concurrency)
        ]
        try:
            await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if turn.is_over and self._now() < batch.expire_time:
            raise _TurnOver

    async def _some(
        self, lease: Lease, batch: Batch, requests: Iterator[Request], turn: Turn
    ) -> None:
        """Ask one request after the other, sharing ``requests`` with others."""
        for number, request in requests:
            if self._now() >= batch.expire_time or await turn.ends():
                return
            body = orjson.dumps(request["body"])
            answered = await self._ask_patiently(batch, number, body, turn)
            if answered is None:
                return
            line_id = batch.line_id(number)
            answer = batch_output.answered_line(line_id, request["custom_id"], answered)
            await self._keep(lease, number, answer)

    async def _ask_patiently(
        self, batch: Batch, number: int, body: bytes, turn: Turn
    ) -> Answered | None:
        """Ask until there is an answer that will stay the same; None when the turn ends before."""
        order, attempt, line = batch.order, 0, (batch.id, number)
        gives_up_seconds = self._patience_ends.pop(line, None)
        while True:
            answered = await self._ask(order.tenant, order.key_id, order.endpoint, body)
            seconds = answered.retry_seconds()
            if seconds is None:
                return answered
            if answered.status == 503:
                if gives_up_seconds is None:
                    gives_up_seconds = self._monotonic() + self._pace.patience_seconds
                if self._monotonic() >= gives_up_seconds:
                    return answered
                seconds = max(seconds, min(2.0**attempt, _LONGEST_WAIT_SECONDS))
                attempt += 1
            _RETRIES.labels(str(answered.status)).inc()
            await self._sleep(seconds)
            if await turn.ends():
                if gives_up_seconds is not None:
                    self._patience_ends[line] = gives_up_seconds
                return None

    def _forget_old_lines(self) -> None:
        """Those of batches that have ended since, perhaps in another gateway."""
        oldest = self._monotonic() - WINDOW.total_seconds()
        kept = {line: end for line, end in self._patience_ends.items() if end > oldest}
        self._patience_ends = kept

    async def _keep(self, lease: Lease, number: int, answer: LineAnswer) -> None:
        await self._in_thread(self._store.answer, lease, number, answer)
        _LINES.labels("completed" if answer.is_success else "failed").inc()

    async def _give_up(self, lease: Lease, batch: Batch, pending: set[int]) -> None:
        """Say of the lines that were not asked that they can be read no more."""
        after = 0
        while lines := await self._in_thread(self._store.lines, lease, after, _LINES_AT_ONCE):
            for line in lines:
                if line.number in pending and line.answer is None:
                    line_id = batch.line_id(line.number)
                    answer = batch_output.unreadable_line(line_id, line.custom_id)
                    await self._keep(lease, line.number, answer)
            after = lines[-1].number

    async def _finish(self, lease: Lease, batch: Batch) -> Batch:
        """Make the files, and end the batch."""
        if not batch.total:  # its input was never checked to the end
            return await self._in_thread(self._store.end, lease, batch.ending(), None, None)
        with self._file() as output, self._file() as mistakes:

            def write() -> None:
                def page(after: int, count: int) -> Any:
                    return self._store.lines(lease, after, count)

                batch_output.write(batch, page, output, mistakes)

            await self._in_thread(write)
            try:
                output_id = await self._keep_file(batch, "output", output)
                error_id = await self._keep_file(batch, "errors", mistakes)
            except InvalidArgument as error:  # trying again would not make it smaller
                errors = [BatchError(error.reason.lower(), f"the output is refused: {error}")]
                return await self._in_thread(self._store.fail, lease, errors)
        return await self._in_thread(self._store.end, lease, batch.ending(), output_id, error_id)

    async def _keep_file(self, batch: Batch, kind: str, source: IO[bytes]) -> str | None:
        """The id of the file; None when there is nothing to keep."""
        size_bytes = source.tell()
        if not size_bytes:
            return None
        source.seek(0)
        name = f"{batch.id}_{kind}"
        return await self._files.keep(batch.order.tenant, f"{name}.jsonl", name, source, size_bytes)

    @asynccontextmanager
    async def _input(self, batch: Batch) -> AsyncIterator[IO[bytes]]:
        with self._file() as file:
            await self._files.fetch(batch.order.tenant, batch.order.input_file_id, file)
            file.seek(0)
            yield file

    def _file(self) -> IO[bytes]:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._scratch)
