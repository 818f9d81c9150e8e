"""Copies of requests to a version that is tried in the shadow of the one that answers.

A copy begins when the client's answer has begun, takes no place at the entrance, and only runs
where there is room to spare; at once somebody has to wait for a place, all copies are given up.
So a copy neither delays nor fails a request. It is never tried again. Its answer is compared and
thrown away; it counts in nobody's usage or limits, and in the client's trace only as a link.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace

from opentelemetry.trace import Span
from prometheus_client import Counter as CounterMetric

from millrace_gateway import deltas, spans
from millrace_gateway.answers import Answer, AnswerCounts
from millrace_gateway.entrance import Entrance
from millrace_gateway.placement import Place
from millrace_gateway.route import Choice, Target
from millrace_gateway.triton import Delta, Engine, EngineFailed, EngineRequest, joined
from millrace_runtime.errors import MillraceError

LOG = logging.getLogger(__name__)

_MIRRORED = CounterMetric(
    "millrace_mirrored_total",
    "Requests copied to a version in the shadow: compared, answered, failed, dropped.",
    ["model", "outcome"],
)

_OPERATIONS = ("chat", "text_completion")


@dataclass(frozen=True)
class Asked:
    """A client's request, as far as a copy of it goes.

    Attributes:
        ask_of: what is asked of the version at a place, with a span; a chat template that refuses
            raises a MillraceError.
        span: of the client's request.
    """

    operation: str
    sampling: Mapping[str, object]
    ask_of: Callable[[Place, Span], EngineRequest]
    span: Span

    @property
    def is_fixed(self) -> bool:
        """It has one right answer, so that two may be compared: it is greedy, or has a seed."""
        return self.sampling.get("temperature") == 0 or self.sampling.get("seed") is not None


@dataclass
class _Original:
    """What the client was answered, as far as it has come. ``ended`` is set at its end."""

    parts: list[Delta] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Mirror:
    """Makes copies, ``maximum`` at a time.

    Args:
        random_number: in [0, 1), decides which requests are mirrored.
    """

    def __init__(
        self,
        engine: Engine,
        entrance: Entrance,
        answers: AnswerCounts,
        maximum: int,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._entrance = entrance
        self._answers = answers
        self._maximum = maximum
        self._random_number = random_number
        self._copies: dict[asyncio.Task[None], str] = {}
        entrance.on_waiting(self.give_up)

    def follow(
        self, answer: AsyncIterator[Delta], place: Place, asked: Asked
    ) -> AsyncIterator[Delta]:
        """The answer as it is; beside it, a copy of its request, if it is one to mirror.

        Args:
            place: where it comes from.
        """
        target = self._shadow_of(place) if asked.operation in _OPERATIONS else None
        if target is None or self._random_number() >= target.mirror_share:
            return answer
        return self._followed(answer, place, target, asked)

    def give_up(self) -> None:
        """End all copies: there is no room for them."""
        for copy in self._copies:
            copy.cancel()

    async def close(self) -> None:
        """End all copies, wait until they have, and begin no more."""
        self._maximum = 0
        self.give_up()
        await asyncio.gather(*self._copies, return_exceptions=True)

    def _shadow_of(self, place: Place) -> Target | None:
        """The version that gets copies of what is asked there; None: none does."""
        if not place.target.share:  # it was named: not one of the requests that a rollout shares
            return None
        return next((t for t in place.route.targets if t.mirror_share and t.endpoints), None)

    async def _followed(
        self,
        answer: AsyncIterator[Delta],
        place: Place,
        target: Target,
        asked: Asked,
    ) -> AsyncIterator[Delta]:
        original: _Original | None = None
        try:
            async for delta in answer:
                if original is None:
                    original = _Original()
                    self._begin(original, place, target, asked)
                original.parts.append(delta)
                if delta.finish_reason:
                    original.ended.set()
                yield delta
        finally:
            if original is not None:
                original.ended.set()
            await deltas.close(answer)

    def _begin(self, original: _Original, place: Place, target: Target, asked: Asked) -> None:
        endpoint = min(target.endpoints, key=lambda one: self._load(one))
        model = place.route.model
        is_calm = self._entrance.is_calm(endpoint, self._load(endpoint))
        if len(self._copies) >= self._maximum or not is_calm:
            _MIRRORED.labels(model, "dropped").inc()
            return
        there = Place(place.route, Choice(target, endpoint))
        copy = asyncio.create_task(self._copy(original, place, there, asked))
        self._copies[copy] = endpoint
        copy.add_done_callback(lambda task: self._ended(task, model))

    def _load(self, endpoint: str) -> int:
        return sum(1 for one in self._copies.values() if one == endpoint)

    def _ended(self, copy: asyncio.Task[None], model: str) -> None:
        del self._copies[copy]
        if copy.cancelled():
            _MIRRORED.labels(model, "dropped").inc()
        elif error := copy.exception():
            LOG.error("a copy for model %s failed: %r", model, error)

    async def _copy(self, original: _Original, place: Place, there: Place, asked: Asked) -> None:
        tenant, model = there.route.tenant, there.route.model
        shadow = self._answers.shadow(tenant, model, place.version, there.version)
        with spans.mirror(model, there.route, there.choice, asked.span) as span:
            try:
                new, answer = await self._ask(there, asked, span)
            except (EngineFailed, MillraceError) as error:
                span.add_event("failed", {"reason": str(error)})
                self._answers.failed(tenant, model, there.version)
                shadow.failed += 1
                _MIRRORED.labels(model, "failed").inc()
                return
        self._answers.answered(tenant, model, there.version, answer)
        await original.ended.wait()
        old = joined(original.parts)
        is_compared = asked.is_fixed and bool(old.finish_reason)
        if is_compared:
            shadow.compare(old, new)
            self._answers.changed.set()
        _MIRRORED.labels(model, "compared" if is_compared else "answered").inc()

    async def _ask(self, there: Place, asked: Asked, span: Span) -> tuple[Delta, Answer]:
        """The whole answer of the version in the shadow.

        Raises:
            EngineFailed: it did not answer, or broke off.
            MillraceError: it has no prompt for the request, or refuses it.
        """
        started = time.perf_counter()
        copy = asked.ask_of(there, span)
        # An id of its own: the engine may be the same one.
        parts = self._engine.generate(there.endpoint, replace(copy, id=f"{copy.id}-mirror"))
        first = await deltas.first_of(parts)
        first_token_seconds = time.perf_counter() - started
        whole = joined([first, *[delta async for delta in parts]])
        if not whole.finish_reason:
            raise EngineFailed("the engine's stream ended without a finish reason")
        return whole, Answer(
            whole.token_count,
            whole.first_token_seconds or first_token_seconds,
            _token_seconds(whole),
            whole.finish_reason,
        )


def _token_seconds(whole: Delta) -> float | None:
    """Mean time of each token after the first, by the engine's clock."""
    if not whole.total_seconds or whole.token_count < 2:
        return None
    return (whole.total_seconds - whole.first_token_seconds) / (whole.token_count - 1)
