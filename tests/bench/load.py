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
from itertools import pairwise
from urllib.parse import urlsplit

import uvloop

from tests.bench.connection import TOKENS, Connection, connect, request


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
    report, asked = Report(), _request(plan)
    host, port = urlsplit(plan.url).netloc.split(":")
    connections = [await connect(host, int(port)) for _ in range(plan.streams)]
    started = time.perf_counter()
    await asyncio.gather(*(_one_stream(each, asked, plan, report) for each in connections))
    report.seconds = time.perf_counter() - started
    return report


async def _one_stream(connection: Connection, asked: bytes, plan: Plan, report: Report) -> None:
    for _ in range(plan.requests):
        started = time.perf_counter()
        if not connection.is_open:
            host, port = urlsplit(plan.url).netloc.split(":")
            connection = await connect(host, int(port))
        answer = await connection.ask(asked)
        report.latencies.append(time.perf_counter() - started)
        tokens = TOKENS.search(answer)
        assert answer[9:12] == b"200" and tokens is not None, answer
        report.tokens += int(tokens[1])
        report.requests += 1
        if plan.is_streamed:
            report.first.append(connection.pieces[0] - started)
            report.gaps += [later - earlier for earlier, later in pairwise(connection.pieces)]


def _request(plan: Plan) -> bytes:
    body = {
        "model": plan.model,
        "messages": [{"role": "user", "content": plan.prompt}],
        "max_tokens": plan.max_tokens,
        "temperature": 0,
    }
    if plan.is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return request(f"{urlsplit(plan.url).path}/chat/completions", plan.key, body)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(carry_out(Plan(**json.loads(sys.argv[1])))))))
