"""One completion: admit it, choose a version, ask the engine, follow it to its end."""

import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from prometheus_client import Counter, Gauge, Histogram

from millrace_gateway import route, spans
from millrace_gateway.answers import AnswerCounts
from millrace_gateway.domain import Principal, Priority
from millrace_gateway.entrance import Entrance
from millrace_gateway.health import Health
from millrace_gateway.limits import Limiter, Reservation, estimated_tokens, prompt_tokens
from millrace_gateway.route import Choice, Route, RouteTable, Target
from millrace_gateway.triton import Delta, Engine, EngineFailed, EngineRequest
from millrace_runtime import telemetry
from millrace_runtime.errors import MillraceError, Unavailable

_ROUTE_CHANGE_SECONDS = 1.0
_TIERS = {"priority": Priority.HIGH, "flex": Priority.LOW}

_ACTIVE = Gauge("millrace_generations_active", "Completions in progress.")
_ENDED = Counter("millrace_generations_total", "Completions that ended.", ["model", "outcome"])
_TOKENS = Counter("millrace_generation_tokens_total", "Tokens.", ["model", "kind"])
_FIRST_TOKEN = Histogram(
    "millrace_generation_first_token_seconds",
    "From asking the engine to the first token.",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class PromptMaker(Protocol):
    """Makes the prompt for a version, whose chat template may differ from another's."""

    def __call__(self, target: Target) -> str | list[int]: ...


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        operation: ``gen_ai.operation.name``: "chat" or "text_completion".
        model: as the client wrote it: ``demo``, ``demo@7``, ``demo@champion``.
        sampling: the engine's sampling parameters; those that are None are left out.
        principal: whose limits and priority hold; None: nobody's.
        service_tier: "priority", "default", "auto" or "flex"; None is as "auto".
        is_part: one of several answers to a request of which the first was counted already.
    """

    id: str
    tenant: str
    operation: str
    model: str
    make_prompt: PromptMaker
    sampling: dict[str, object]
    principal: Principal | None = None
    service_tier: str | None = None
    is_part: bool = False


@dataclass
class Generation:
    """A completion that has begun: its first delta is there. Close it, or read it to its end."""

    request: Request
    route: Route
    choice: Choice
    span: Span
    _first: Delta
    _rest: AsyncIterator[Delta]
    _end: Callable[["Generation", str], None]
    reservation: Reservation | None = None
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    _ended: bool = field(default=False)

    @property
    def target(self) -> Target:
        return self.choice.target

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer as it comes.

        Raises:
            Unavailable: the engine broke off.
        """
        outcome = "cancelled"
        try:
            delta: Delta | None = self._first
            while delta is not None:
                self._count(delta)
                yield delta
                delta = await anext(self._rest, None)
            outcome = "ok" if self.finish_reason else "failed"
            if outcome == "failed":
                raise EngineFailed("the engine's stream ended without a finish reason")
        except EngineFailed as error:
            outcome = "failed"
            self.span.set_status(StatusCode.ERROR, str(error))
            raise Unavailable(
                f"the model broke off its answer: {error}", reason="ENGINE_FAILED"
            ) from error
        finally:
            await self.close(outcome)

    async def close(self, outcome: str = "cancelled") -> None:
        """Stop the engine if it still runs. Closing twice is as once."""
        if not self._ended:
            self._ended = True
            self._end(self, outcome)
            await _close(self._rest)

    def _count(self, delta: Delta) -> None:
        self.completion_tokens += delta.token_count
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
            self.prompt_tokens = delta.prompt_token_count


class Generator:
    """Starts completions: those that their key's limits and the entrance let in."""

    def __init__(
        self,
        routes: RouteTable,
        engine: Engine,
        entrance: Entrance,
        limiter: Limiter,
        health: Health,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self.routes = routes
        self.limiter = limiter
        self._engine = engine
        self._entrance = entrance
        self._health = health
        self._random_number = random_number
        self._active = 0
        self.answers = AnswerCounts()

    async def start(self, request: Request) -> Generation:
        """Ask for a completion and wait for its first token.

        When a version fails before its first token, the request is asked once more: of another
        endpoint or version if there is one, else after the route table had a moment to change.

        Raises:
            MillraceError: no such model, too many requests, or what the engine said.
        """
        found, pinned = self.routes.find(request.tenant, request.model)
        self._entrance.check(self._active, _priority_of(request))
        request, reservation = self._reserve(request, found, pinned)
        try:
            generation = await self._start(request, found, pinned)
        except BaseException:
            if reservation is not None:
                reservation.settle(0)
            raise
        generation.reservation = reservation
        return generation

    def _reserve(
        self, request: Request, found: Route, pinned: str
    ) -> tuple[Request, Reservation | None]:
        """Hold a key that has limits to them.

        Raises:
            RateLimited: one is reached.
        """
        allowance = self.limiter.of(request.principal)
        if allowance is None:
            return request, None
        requests = 0 if request.is_part else 1
        limit = allowance.limits.tokens_per_minute
        if limit is None:
            return request, allowance.reserve(0, requests)
        # The prompt is needed now to be measured, and again to be asked.
        request = replace(request, make_prompt=functools.cache(request.make_prompt))
        prompt = request.make_prompt(route.candidates(found, pinned)[0])
        tokens = estimated_tokens(prompt, request.sampling.get("max_tokens"), limit)
        return request, allowance.reserve(tokens, requests)

    async def _start(self, request: Request, found: Route, pinned: str) -> Generation:
        span = spans.start(request.id, request.operation, request.model, request.sampling)
        self._active += 1
        _ACTIVE.set(self._active)
        try:
            generation = await self._attempt(request, found, pinned, span)
        except BaseException as error:
            outcome = "refused" if isinstance(error, MillraceError) else "cancelled"
            self._release(found.model, outcome)
            span.set_status(StatusCode.ERROR, str(error))
            span.end()
            raise
        _FIRST_TOKEN.labels(found.model).observe(generation.first_token_seconds)
        return generation

    async def _attempt(self, request: Request, found: Route, pinned: str, span: Span) -> Generation:
        failed: set[Choice] = set()
        while True:
            found, choice = await self._choose(request, found, pinned, failed)
            choice = await self._enter(request, found, choice, failed)
            try:
                return await self._ask(request, found, choice, span)
            except EngineFailed as error:
                span.add_event(
                    "attempt failed", {"endpoint": choice.endpoint, "reason": str(error)}
                )
                self.answers.failed(found.tenant, found.model, choice.target.version)
                if failed:
                    raise Unavailable(
                        f"model {request.model!r} does not answer: {error}", reason="ENGINE_FAILED"
                    ) from error
                failed.add(choice)

    async def _choose(
        self, request: Request, found: Route, pinned: str, failed: Collection[Choice]
    ) -> tuple[Route, Choice]:
        choice = self._choice(found, pinned, failed)
        if choice is None:
            await self.routes.wait_for_change(_ROUTE_CHANGE_SECONDS)
            found, pinned = self.routes.find(request.tenant, request.model)
            choice = self._choice(found, pinned, ())
        assert choice is not None, "there are candidates, and nothing is excluded"
        return found, choice

    def _choice(self, found: Route, pinned: str, failed: Collection[Choice]) -> Choice | None:
        return route.choose(
            route.candidates(found, pinned),
            self._random_number(),
            failed,
            self._entrance.in_progress,
            self._health.ejected(found.triton_model),
        )

    async def _enter(
        self, request: Request, found: Route, choice: Choice, failed: Collection[Choice]
    ) -> Choice:
        """Take a place at the chosen endpoint; if there is none, the first at one of its like."""
        ejected = self._health.ejected(found.triton_model)
        alike = route.available(choice.target, failed, ejected)
        endpoint = await self._entrance.enter(
            choice.endpoint, alike, _priority_of(request), _turn_of(request)
        )
        return choice if endpoint == choice.endpoint else Choice(choice.target, endpoint)

    async def _ask(self, request: Request, found: Route, choice: Choice, span: Span) -> Generation:
        """Wait for the first token; the place that was taken is kept only if it comes.

        Raises:
            EngineFailed: it does not.
        """
        place = (found.triton_model, choice.target.version, choice.endpoint)
        self._health.asked(*place)
        started = time.perf_counter()
        try:
            asked = _engine_request(request, found, choice, span)
            rest = self._engine.generate(choice.endpoint, asked)
            first = await _first(rest)
        except BaseException as error:
            self._entrance.leave(choice.endpoint)
            if isinstance(error, EngineFailed):
                self._health.failed(*place)
            raise
        self._health.answered(*place)
        spans.describe_choice(span, found, choice)
        generation = Generation(request, found, choice, span, first, rest, self._ended)
        generation.first_token_seconds = time.perf_counter() - started
        return generation

    def _ended(self, generation: Generation, outcome: str) -> None:
        model = generation.route.model
        self._entrance.leave(generation.choice.endpoint)
        _TOKENS.labels(model, "prompt").inc(generation.prompt_tokens)
        _TOKENS.labels(model, "completion").inc(generation.completion_tokens)
        self._release(model, outcome)
        self._count(generation, outcome)
        if generation.reservation is not None:
            # Without a limit on tokens none were reserved, and none are counted.
            tokens = _used_tokens(generation) if generation.reservation.tokens else 0
            generation.reservation.settle(tokens)
        generation.span.set_attributes(
            {
                "gen_ai.usage.input_tokens": generation.prompt_tokens,
                "gen_ai.usage.output_tokens": generation.completion_tokens,
                "gen_ai.response.finish_reasons": [generation.finish_reason or outcome],
            }
        )
        generation.span.end()

    def _count(self, generation: Generation, outcome: str) -> None:
        """Tell how the version did; a client that left says nothing about it."""
        tenant, model = generation.route.tenant, generation.route.model
        version, tokens = generation.target.version, generation.completion_tokens
        if outcome == "ok":
            seconds = generation.first_token_seconds
            self.answers.answered(tenant, model, version, tokens, seconds)
        elif outcome == "failed":
            self.answers.failed(tenant, model, version)

    def _release(self, model: str, outcome: str) -> None:
        self._active -= 1
        _ACTIVE.set(self._active)
        _ENDED.labels(model, outcome).inc()


def _priority_of(request: Request) -> Priority:
    tier = _TIERS.get(request.service_tier or "")
    if tier is not None:
        return tier
    return request.principal.limits.priority if request.principal else Priority.DEFAULT


def _turn_of(request: Request) -> str:
    """Among whom turns are taken: keys."""
    return request.principal.key_id if request.principal else request.tenant


def _used_tokens(generation: Generation) -> int:
    """What was used; the engine counts the prompt only at the end, before that it is estimated."""
    prompt = generation.prompt_tokens
    if not prompt:
        prompt = prompt_tokens(generation.request.make_prompt(generation.target))
    return prompt + generation.completion_tokens


async def collect(generation: Generation) -> str:
    """The whole answer's text.

    Raises:
        Unavailable: the engine broke off.
    """
    return "".join([delta.text async for delta in generation.deltas()])


def _engine_request(request: Request, found: Route, choice: Choice, span: Span) -> EngineRequest:
    with trace.use_span(span):
        traceparent = telemetry.current_traceparent()
    sampling = {key: value for key, value in request.sampling.items() if value is not None}
    return EngineRequest(
        id=request.id,
        triton_model=found.triton_model,
        version=choice.target.version,
        prompt=request.make_prompt(choice.target),
        sampling=orjson.dumps(sampling),
        traceparent=traceparent,
    )


async def _first(deltas: AsyncIterator[Delta]) -> Delta:
    """The first delta; the iterator is closed when there is none.

    Raises:
        EngineFailed: the stream failed, or ended, before it began.
    """
    try:
        first = await anext(deltas, None)
        if first is None:
            raise EngineFailed("the engine's stream ended before it began")
        return first
    except BaseException:
        await _close(deltas)
        raise


async def _close(iterator: AsyncIterator[Delta]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
    if close is not None:
        await close()
