"""Clients that ask when it is time, not when they are answered; in a process of its own.

    python -m tests.bench.open_loop '{"url": …, "model": …, "seconds": 30, "flows": [{…}]}'

prints one JSON object: a ``Seen`` a flow. A flow's requests come as a Poisson process; or, with
``streams``, one after the other, to find out how much there is. Times count from when a request
was due, so that a late generator makes no figure better. It reads no more than it needs from raw
sockets: some 20 µs a message, so that two cores are left to what is measured.
"""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import uvloop

from tests.bench.connection import TOKENS, Connection, connect, request

_LAST_ANSWERS_SECONDS = 60.0


@dataclass(frozen=True)
class Flow:
    """Requests of one kind.

    Attributes:
        tier: ``service_tier``; empty for the key's own priority.
        per_second: requests that come on average; ignored when there are ``streams``.
        streams: how many are in progress at any time; 0: they come as ``per_second`` says.
    """

    name: str
    key: str
    max_tokens: int
    tier: str = ""
    per_second: float = 0.0
    streams: int = 0


@dataclass(frozen=True)
class Plan:
    """What comes to the server at ``host:port``.

    Attributes:
        warm_seconds: at the beginning, that are not counted.
        seconds: that are counted.
    """

    address: str
    model: str
    flows: Sequence[Flow]
    seconds: float
    warm_seconds: float = 2.0
    seed: int = 1


@dataclass
class Seen:
    """What became of the requests of one flow that were due while it was counted.

    Attributes:
        tokens: of all answers that were complete within the counted time.
        late: seconds by which each was sent after it was due.
        first: seconds to the first token.
        latencies: seconds to the end of a whole answer.
        refusals: seconds to a 429.
        without_retry_after: 429s that did not say when to try again.
        failures: all other answers; the first of them as text.
    """

    due: int = 0
    tokens: int = 0
    seconds: float = 0.0
    late: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Tokens a second, of whole answers alone."""
        return self.tokens / self.seconds


def run(plan: Plan) -> dict[str, Seen]:
    """Carry ``plan`` out in a process of its own; what each flow saw, by its name.

    Raises:
        subprocess.CalledProcessError: it broke off.
    """
    command = [sys.executable, "-m", "tests.bench.open_loop", json.dumps(asdict(plan))]
    patience = plan.warm_seconds + plan.seconds + 2 * _LAST_ANSWERS_SECONDS
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=patience)
    return {name: Seen(**seen) for name, seen in json.loads(ended.stdout).items()}


class Crowd:
    """All flows of a plan, over as many connections as they need at once."""

    def __init__(self, plan: Plan) -> None:
        host, port = plan.address.split(":")
        self._host, self._port = host, int(port)
        self._plan = plan
        self._idle: deque[Connection] = deque()
        self._numbers = itertools.count()
        self._asking: set[asyncio.Task[None]] = set()
        self.seen = {flow.name: Seen(seconds=plan.seconds) for flow in plan.flows}

    async def come(self) -> None:
        """Until the plan's time is over and all that asked have been answered."""
        self._begin = time.perf_counter() + self._plan.warm_seconds
        self._end = self._begin + self._plan.seconds
        coming = [
            self._come_in_streams(flow) if flow.streams else self._come_when_due(flow)
            for flow in self._plan.flows
        ]
        await asyncio.gather(*coming)
        if self._asking:
            await asyncio.wait(self._asking, timeout=_LAST_ANSWERS_SECONDS)

    async def _come_in_streams(self, flow: Flow) -> None:
        draw = random.Random(f"{self._plan.seed} {flow.name}")

        async def one_stream() -> None:
            # Clients do not begin, and so end, all at once: an engine is quicker with those.
            await asyncio.sleep(draw.random() * self._plan.warm_seconds)
            while (now := time.perf_counter()) < self._end:
                await self._ask(flow, now)

        await asyncio.gather(*(one_stream() for _ in range(flow.streams)))

    async def _come_when_due(self, flow: Flow) -> None:
        draw = random.Random(f"{self._plan.seed} {flow.name}")
        due = self._begin - self._plan.warm_seconds
        while (due := due + draw.expovariate(flow.per_second)) < self._end:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.ensure_future(self._ask(flow, due))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, flow: Flow, due: float) -> None:
        connection = await self._connection()
        late = time.perf_counter() - due
        answer = await connection.ask(self._request(flow))
        ended = time.perf_counter()
        if connection.is_open:
            self._idle.append(connection)
        self._count(flow, due, late, connection.first_byte, ended, answer)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await connect(self._host, self._port)

    def _request(self, flow: Flow) -> bytes:
        """Each prompt differs from the beginning, as those of different clients do."""
        body = {
            "model": self._plan.model,
            "messages": [{"role": "user", "content": f"{next(self._numbers)}: def main() ->"}],
            "max_tokens": flow.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"service_tier": flow.tier} if flow.tier else {}),
        }
        return request("/v1/chat/completions", flow.key, body)

    def _count(
        self, flow: Flow, due: float, late: float, first: float, ended: float, answer: bytes
    ) -> None:
        seen, status = self.seen[flow.name], answer[9:12]
        tokens = TOKENS.search(answer)
        is_whole = status == b"200" and tokens is not None and b"[DONE]" in answer
        if is_whole and tokens is not None and self._begin <= ended < self._end:
            seen.tokens += int(tokens[1])
        if not self._begin <= due < self._end:
            return
        seen.due += 1
        seen.late.append(late)
        if is_whole:
            seen.first.append(first - due)
            seen.latencies.append(ended - due)
        elif status == b"429":
            seen.refusals.append(ended - due)
            seen.without_retry_after += b"\r\nretry-after: " not in answer.lower()
        else:
            seen.failures.append(answer.decode(errors="replace") if not seen.failures else "")


async def _carry_out(plan: Plan) -> dict[str, Seen]:
    crowd = Crowd(plan)
    await crowd.come()
    return crowd.seen


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["flows"] = [Flow(**flow) for flow in given["flows"]]
    found = uvloop.run(_carry_out(Plan(**given)))
    print(json.dumps({name: asdict(seen) for name, seen in found.items()}))
