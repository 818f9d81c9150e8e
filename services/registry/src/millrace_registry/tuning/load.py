"""Requests as traffic brings them, in the scenarios of MLPerf Inference.

Single stream, server and offline: Reddi et al. 2020, "MLPerf Inference Benchmark"
(https://arxiv.org/abs/1911.02549), section 3. What is answered here are language models: latency
is that of the first token and of each further one, as in MLPerf's rules for those.
"""

import asyncio
import math
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_FEWEST_SINGLE = 3
_FEWEST_SERVER = 8
_LONGEST = 4  # times as long as asked for, so that so many come
_TAIL = 0.99


class AskFailed(Exception):
    """A request had no whole answer; why."""


@dataclass(frozen=True)
class Answer:
    """Seconds count from when it was asked; in a ``Run`` from when that was due."""

    first_token_seconds: float
    seconds: float
    tokens: int

    @property
    def token_seconds(self) -> float:
        """Mean time of each token after the first."""
        return (self.seconds - self.first_token_seconds) / max(1, self.tokens - 1)


class Engine(Protocol):
    """What is asked. ``seed`` makes each prompt one of its own."""

    async def ask(self, prompt_tokens: int, answer_tokens: int, seed: int) -> Answer:
        """
        Raises:
            AskFailed
        """
        ...


@dataclass(frozen=True)
class Shape:
    """``pairs``: tokens of prompts and of their answers, drawn from evenly."""

    pairs: Sequence[tuple[int, int]]

    def within(self, context_tokens: int) -> "Shape":
        """The same, cut to what a model can take: one that is too long has its prompt cut."""
        cut = []
        for prompt, answer in self.pairs:
            answered = min(answer, context_tokens - 1)
            cut.append((min(prompt, context_tokens - answered), answered))
        return Shape(cut)


@dataclass(frozen=True)
class Run:
    """One scenario. ``failed``: requests without a whole answer in time."""

    answers: Sequence[Answer]
    seconds: float
    failed: int = 0

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    @property
    def requests_per_second(self) -> float:
        return len(self.answers) / self.seconds


@dataclass(frozen=True)
class Target:
    """Seconds within which 99 of 100 requests have their first, and each further token."""

    first_token_seconds: float
    token_seconds: float

    def is_met(self, run: Run) -> bool:
        """A request that was not answered was not answered in time."""
        first, each = tail(run)
        return first <= self.first_token_seconds and each <= self.token_seconds


def tail(run: Run) -> tuple[float, float]:
    """99th percentiles of the first token's and of each further token's time; infinite when more
    requests than that failed."""
    lost = [math.inf] * run.failed
    first = [answer.first_token_seconds for answer in run.answers] + lost
    each = [answer.token_seconds for answer in run.answers] + lost
    return percentile(first, _TAIL), percentile(each, _TAIL)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank; infinite when there are no values."""
    if not values:
        return math.inf
    return sorted(values)[math.ceil(share * len(values)) - 1]


class Load:
    """Asks one engine; the same seed brings the same requests."""

    def __init__(self, engine: Engine, shape: Shape, seed: int) -> None:
        self._engine = engine
        self._shape = shape
        self._seed = seed

    async def single_stream(self, seconds: float) -> Run:
        """One request after the other.

        Raises:
            AskFailed
        """
        draw = random.Random(f"{self._seed} single")
        answers: list[Answer] = []
        started = time.perf_counter()
        while len(answers) < _FEWEST_SINGLE or time.perf_counter() - started < seconds:
            answers.append(await self._ask(draw, time.perf_counter()))
        return Run(answers, time.perf_counter() - started)

    async def offline(self, count: int) -> Run:
        """All at once.

        Raises:
            AskFailed
        """
        draw = random.Random(f"{self._seed} offline")
        started = time.perf_counter()
        asked = [self._ask(draw, started) for _ in range(count)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        answers = [answer for answer in ended if isinstance(answer, Answer)]
        for failure in ended:
            if isinstance(failure, BaseException):
                raise failure
        return Run(answers, time.perf_counter() - started)

    async def server(self, requests_per_second: float, seconds: float, patience: float) -> Run:
        """They come as a Poisson process, whether or not the earlier ones were answered.

        Args:
            patience: seconds after the last one came; what is not answered then has failed.
        """
        draw = random.Random(f"{self._seed} server")
        started = time.perf_counter()
        tasks: list[asyncio.Task[Answer]] = []
        seconds = min(_LONGEST * seconds, max(seconds, _FEWEST_SERVER / requests_per_second))
        due = started
        while (due := due + draw.expovariate(requests_per_second)) < started + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(draw, due)))
        if not tasks:
            tasks.append(asyncio.create_task(self._ask(draw, time.perf_counter())))
        done, late = await asyncio.wait(tasks, timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        answers = [task.result() for task in done if task.exception() is None]
        return Run(answers, time.perf_counter() - started, len(tasks) - len(answers))

    def _ask(self, draw: random.Random, due: float) -> Coroutine[Any, Any, Answer]:
        prompt, answer = draw.choice(self._shape.pairs)
        return self._timed(prompt, answer, draw.getrandbits(32), due)

    async def _timed(self, prompt: int, answer: int, seed: int, due: float) -> Answer:
        late = time.perf_counter() - due
        found = await self._engine.ask(prompt, answer, seed)
        return Answer(found.first_token_seconds + late, found.seconds + late, found.tokens)
