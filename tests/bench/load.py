"""A client under load, in a process of its own: streams that ask one question after another.

    python -m tests.bench.load '{"url": …, "key": …, "model": …, "streams": 8, …}'

prints one JSON object (``Report``). Every stream asks ``requests`` times, so that all measured
work is whole requests.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

import aiohttp

_DATA = b"data: "
_DONE = b"[DONE]"


@dataclass(frozen=True)
class Plan:
    """What is asked of the server at ``url`` (which ends in ``/v1``)."""

    url: str
    key: str
    model: str
    prompt: str
    streams: int
    requests: int
    max_tokens: int
    is_streamed: bool = True


@dataclass
class Report:
    """What the client saw; times in seconds.

    Attributes:
        first: from each request to its first piece of text.
        gaps: between the pieces of a stream.
        latencies: from each request to its end.
    """

    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def run(plan: Plan) -> Report:
    """Carry ``plan`` out in a process of its own.

    Raises:
        subprocess.CalledProcessError: a request failed.
    """
    command = [sys.executable, "-m", "tests.bench.load", json.dumps(asdict(plan))]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return Report(**json.loads(ended.stdout))


async def carry_out(plan: Plan) -> Report:
    report = Report()
    headers = {"authorization": f"Bearer {plan.key}"}
    connector = aiohttp.TCPConnector(limit=plan.streams)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        started = time.perf_counter()
        await asyncio.gather(*(_one_stream(session, plan, report) for _ in range(plan.streams)))
        report.seconds = time.perf_counter() - started
    return report


async def _one_stream(session: aiohttp.ClientSession, plan: Plan, report: Report) -> None:
    ask = _ask_for_stream if plan.is_streamed else _ask
    for _ in range(plan.requests):
        started = time.perf_counter()
        tokens = await ask(session, plan, report)
        report.tokens += tokens  # in one go: other streams add to it during the await
        report.latencies.append(time.perf_counter() - started)
        report.requests += 1


def _body(plan: Plan) -> dict[str, object]:
    return {
        "model": plan.model,
        "messages": [{"role": "user", "content": plan.prompt}],
        "max_tokens": plan.max_tokens,
        "temperature": 0,
    }


async def _ask(session: aiohttp.ClientSession, plan: Plan, _report: Report) -> int:
    url = f"{plan.url}/chat/completions"
    async with session.post(url, json=_body(plan)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return int(answer["usage"]["completion_tokens"])


async def _ask_for_stream(session: aiohttp.ClientSession, plan: Plan, report: Report) -> int:
    body = {**_body(plan), "stream": True, "stream_options": {"include_usage": True}}
    last, seen, usage = time.perf_counter(), False, b""
    async with session.post(f"{plan.url}/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(_DATA) or line.startswith(_DATA + _DONE):
                continue
            usage = line
            if b'"content":"' not in line or b'"content":""' in line:
                continue
            now = time.perf_counter()
            (report.gaps if seen else report.first).append(now - last)
            last, seen = now, True
    return int(json.loads(usage[len(_DATA) :])["usage"]["completion_tokens"])


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(carry_out(Plan(**json.loads(sys.argv[1])))))))
