"""What batches are tested with: files and answers in memory, and workers that stop anywhere."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from millrace_gateway.batches.ask import Answered
from millrace_gateway.batches.domain import Order
from millrace_gateway.batches.input import InputLimits
from millrace_gateway.batches.run import BatchRunner, Pace
from millrace_gateway.batches.store import BatchStore
from millrace_runtime.errors import AlreadyExists, NotFound
from millrace_runtime.leases import Lease, LeaseLost
from millrace_testkit.clock import FakeClock

ENDPOINT = "/v1/completions"
LIMITS = InputLimits(lines=100, line_bytes=10_000)
TURN_SECONDS = 5.0


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    body = {"model": "demo", "prompt": custom_id, **body}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def jsonl(requests: Sequence[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in requests).encode()


def order(file_id: str, tenant: str = "default") -> Order:
    return Order(tenant, "key-1", ENDPOINT, file_id)


def answered(status: int, body: Any, **headers: str) -> Answered:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answered(status, json.dumps(body).encode(), told)


@dataclass
class MemoryFiles:
    """The data service, by its promises: a request id makes one file, of one content."""

    inputs: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    refusal: Exception | None = None

    async def fetch(self, tenant: str, file_id: str, target: IO[bytes]) -> None:
        if file_id not in self.inputs:
            raise NotFound(f"there is no file {file_id}")
        target.write(self.inputs[file_id])

    async def keep(
        self, tenant: str, filename: str, request_id: str, source: IO[bytes], size_bytes: int
    ) -> str:
        if self.refusal is not None:
            raise self.refusal
        content = source.read()
        assert len(content) == size_bytes
        if self.kept.setdefault(request_id, content) != content:
            raise AlreadyExists("another content", reason="REQUEST_ID_REUSED")
        return f"file-{request_id}"

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = self.kept[file_id.removeprefix("file-")]
        return [json.loads(one) for one in content.splitlines()]


@dataclass
class Model:
    """Answers requests, each time with another number; ``wrong`` ones are refused.

    ``busy`` counts for each prompt how often it is put off before.
    """

    wrong: set[str] = field(default_factory=set)
    busy: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    async def ask(self, tenant: str, key_id: str, path: str, body: bytes) -> Answered:
        prompt = json.loads(body)["prompt"]
        self.asked.append(prompt)
        if self.busy.get(prompt, 0) > 0:
            self.busy[prompt] -= 1
            return answered(429, {"error": {}}, retry_after="0")
        if prompt in self.wrong:
            return answered(400, {"error": {"message": "wrong"}})
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return answered(200, {"text": prompt, "number": next(self._numbers), "usage": usage})


def find_demo(tenant: str, model: str) -> None:
    if model != "demo":
        raise NotFound(f"there is no model {model}")


def runner(
    store: BatchStore,
    files: Any,
    ask: Any,
    scratch: Path,
    clock: FakeClock,
    concurrency: int = 2,
    patience_seconds: float = 0.0,
    **more: Any,
) -> BatchRunner:
    pace = Pace(concurrency, patience_seconds, TURN_SECONDS)
    return BatchRunner(store, files, ask, find_demo, scratch, LIMITS, pace, now=clock, **more)


class SteppedWorker:
    """Runs a batch, stopping before everything that can be seen from outside.

    So each step is one such thing. Between two steps it may be killed, or lie still while others
    take its work.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: BatchStore,
        files: MemoryFiles,
        model: Model,
        scratch: Path,
        clock: FakeClock,
        concurrency: int,
    ) -> None:
        self.store = store
        self._loop = loop
        self._gates: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self.lease: Lease | None = None
        self._runner = runner(
            store,
            _Gated(files, self._gated),
            _Gated(model, self._gated).ask,
            scratch,
            clock,
            concurrency,
            in_thread=self._in_thread,
            sleep=self._sleep,
        )

    @property
    def is_busy(self) -> bool:
        return self._task is not None

    def claim(self) -> bool:
        self.lease = self.store.claim()
        if self.lease is None:
            return False
        self._task = self._loop.create_task(self._runner.run(self.lease))
        self._settle()
        return True

    def step(self, choice: int = 0) -> None:
        """Let one thing happen of those that are about to."""
        assert self._gates, "something is waited for"
        self._gates.pop(choice % len(self._gates)).set_result(None)
        self._settle()

    def renew(self) -> None:
        """What the lease's keeper does; a worker that lost its lease is stopped."""
        assert self.lease is not None
        try:
            self.lease = self.store.renew(self.lease)
        except LeaseLost:
            self.kill()

    def kill(self) -> None:
        """End at once: nothing is written any more, and the lease lies where it is."""
        if self._task is not None:
            self._task.cancel()
            self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._gates.clear()
        self._task = None

    def run_to_end(self) -> None:
        while self.is_busy:
            self.step()

    def _settle(self) -> None:
        """Let everything run that waits for no gate."""
        self._loop.run_until_complete(_quiet())
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            error = task.exception()
            if error is not None and not isinstance(error, LeaseLost):
                raise error

    async def _pass(self) -> None:
        gate: asyncio.Future[None] = self._loop.create_future()
        self._gates.append(gate)
        try:
            await gate
        finally:
            if gate in self._gates:
                self._gates.remove(gate)

    async def _gated(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        await self._pass()
        return await call(*arguments)

    async def _in_thread(self, call: Callable[..., Any], /, *arguments: Any) -> Any:
        await self._pass()
        return call(*arguments)

    async def _sleep(self, seconds: float) -> None:
        await self._pass()


async def _quiet() -> None:
    """Long enough for whatever is between two gates: a few turns of the loop."""
    for _ in range(12):
        await asyncio.sleep(0)


class _Gated:
    """Another object, whose coroutines stop at gates."""

    def __init__(self, inner: Any, gated: Callable[..., Awaitable[Any]]) -> None:
        self._inner = inner
        self._gated = gated

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._inner, name)

        async def gated(*arguments: Any) -> Any:
            return await self._gated(call, *arguments)

        return gated
