"""One completion: admit it, choose a version, ask the engine, follow it to its end."""

import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode
from prometheus_client import Counter, Gauge, Histogram

from millrace_gateway import deltas, route, spans
from millrace_gateway.answers import Answer, AnswerCounts
from millrace_gateway.deadline import OPEN, Deadline, Expiring, within
from millrace_gateway.domain import Principal, Priority
from millrace_gateway.limits import Limiter, Reservation, estimated_tokens, prompt_tokens
from millrace_gateway.mirror import Asked, Mirror
from millrace_gateway.placement import Guest, Place, Placement
from millrace_gateway.route import Choice, Route, Target
from millrace_gateway.traffic import RecentTraffic
from millrace_gateway.triton import Delta, Engine, EngineFailed, EngineRequest
from millrace_runtime import telemetry
from millrace_runtime.errors import MillraceError, Unavailable

_TIERS = {"priority": Priority.HIGH, "flex": Priority.LOW}
_TIER_OF = {Priority.HIGH: "priority", Priority.DEFAULT: "default", Priority.LOW: "flex"}
# Sampling parameters with which an answer is text and nothing else.
_PLAIN = frozenset(
    (
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "response_format",
        "stream",
    )
)

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
        is_streamed: the client reads the answer as it comes.
        user: whom it is for, as the client says; an A/B test keeps him on his side.
        deadline: until when the client waits.
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
    is_streamed: bool = False
    deadline: Deadline = OPEN
    user: str = ""


@dataclass
class Generation:
    """A completion that has begun: its first delta is there. Close it, or read it to its end."""

    request: Request
    place: Place
    span: Span
    _first: Delta
    _rest: AsyncIterator[Delta]
    _end: Callable[["Generation", str], None]
    reservation: Reservation | None = None
    first_token_seconds: float = 0.0
    token_seconds: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    _ended: bool = field(default=False)

    @property
    def route(self) -> Route:
        return self.place.route

    @property
    def target(self) -> Target:
        return self.place.target

    @property
    def service_tier(self) -> str:
        """The class that the request was served in: "priority", "default" or "flex"."""
        return _TIER_OF[_priority_of(self.request)]

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer as it comes.

        Raises:
            Unavailable: the engine broke off.
            DeadlineExceeded: the client does not wait any longer.
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

    def end_by(self, moment: float) -> None:
        """Stop at ``moment`` of the loop's clock, if it is not read to its end by then."""
        is_there = self._first.finish_reason and not self.request.is_streamed
        if not is_there:
            self._rest = Expiring(self._rest, moment, self.close)

    async def close(self, outcome: str = "cancelled") -> None:
        """Stop the engine if it still runs. Closing twice is as once."""
        if not self._ended:
            self._ended = True
            self._end(self, outcome)
            await deltas.close(self._rest)

    def _count(self, delta: Delta) -> None:
        self.completion_tokens += delta.token_count
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
            self.prompt_tokens = delta.prompt_token_count
            if not self.request.is_streamed:  # then the first token did not come by itself
                self.first_token_seconds = delta.first_token_seconds or self.first_token_seconds
            if delta.total_seconds and self.completion_tokens > 1:
                # By the engine's clock: a client that reads slowly is no fault of the version.
                seconds = delta.total_seconds - delta.first_token_seconds
                self.token_seconds = seconds / (self.completion_tokens - 1)


class Generator:
    """Starts completions: those that their key's limits and the entrance let in."""

    def __init__(
        self, placement: Placement, engine: Engine, limiter: Limiter, maximum_mirrored: int = 8
    ) -> None:
        self.routes = placement.routes
        self.limiter = limiter
        self.answers = AnswerCounts()
        self.traffic = RecentTraffic()
        self.placement = placement
        self._engine = engine
        self.mirror = Mirror(engine, placement.entrance, self.answers, maximum_mirrored)

    async def start(self, request: Request) -> Generation:
        """Ask for a completion and wait for its first token.

        When a version fails before its first token, the request is asked once more: of another
        endpoint or version if there is one, else after the route table had a moment to change.
        One that is on trial beside the champion may fail it besides, or have a chat template that
        refuses what the champion's takes: the champion answers.

        Raises:
            MillraceError: no such model, too many requests, or what the engine said.
            DeadlineExceeded: the client does not wait any longer.
        """
        self.placement.check_in(_priority_of(request))
        reservation = None
        try:
            attending = self.placement.attend(request.tenant, request.model)
            found, pinned = await within(request.deadline.begins_by, attending)
            request, reservation = self._reserve(request, found, pinned)
            generation = await within(request.deadline.begins_by, self._start(request, found))
        except BaseException:
            self.placement.check_out()
            if reservation is not None:
                reservation.settle(0)
            raise
        generation.reservation = reservation
        if request.deadline.ends_by is not None:
            generation.end_by(request.deadline.ends_by)
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
        limit = allowance.tokens_per_minute
        if limit is None:
            return request, allowance.reserve(0, requests)
        # The prompt is needed now to be measured, and again to be asked.
        request = replace(request, make_prompt=functools.cache(request.make_prompt))
        prompt = request.make_prompt(route.candidates(found, pinned)[0])
        tokens = estimated_tokens(prompt, request.sampling.get("max_tokens"), limit)
        return request, allowance.reserve(tokens, requests)

    async def _start(self, request: Request, found: Route) -> Generation:
        span = spans.start(request.id, request.operation, request.model, request.sampling)
        _ACTIVE.inc()
        try:
            return await self._attempt(request, span)
        except BaseException as error:
            outcome = "refused" if isinstance(error, MillraceError) else "cancelled"
            _count_end(found.model, outcome)
            span.set_status(StatusCode.ERROR, str(error))
            span.end()
            raise

    async def _attempt(self, request: Request, span: Span) -> Generation:
        turn = _turn_of(request)
        guest = Guest(request.tenant, request.model, _priority_of(request), turn, request.user)
        failed: set[Choice] = set()
        is_last = False
        while True:
            place = await self.placement.enter(guest, failed)
            try:
                return await self._ask(request, place, span)
            except EngineFailed as error:
                self._note_failure(place, span, error)
                is_on_trial = self.placement.incumbent(guest, place) is not None
                if is_on_trial and place.choice not in failed:
                    failed |= place.whole_version
                    continue
                if is_last:
                    raise Unavailable(
                        f"model {request.model!r} does not answer: {error}", reason="ENGINE_FAILED"
                    ) from error
                failed.add(place.choice)
                is_last = True
            except MillraceError as error:
                incumbent = self.placement.incumbent(guest, place)
                if incumbent is None or not place.refuses_alone(request.make_prompt, incumbent):
                    raise
                self._note_failure(place, span, error)
                failed |= place.whole_version

    def _note_failure(self, place: Place, span: Span, error: Exception) -> None:
        span.add_event("attempt failed", {"endpoint": place.endpoint, "reason": str(error)})
        self.answers.failed(place.route.tenant, place.route.model, place.version)

    async def _ask(self, request: Request, place: Place, span: Span) -> Generation:
        """Wait for the first token; the place that was taken is kept only if it comes.

        Raises:
            EngineFailed: it does not.
        """
        self.placement.asked(place)
        started = time.perf_counter()
        try:
            rest = self._engine.generate(place.endpoint, _engine_request(request, place, span))
            ask_of = functools.partial(_engine_request, request)
            asked = Asked(request.operation, request.sampling, ask_of, span)
            rest = self.mirror.follow(rest, place, asked)
            first = await deltas.first_of(rest)
        except BaseException as error:
            self.placement.leave(place)
            if isinstance(error, EngineFailed):
                self.placement.failed(place)
            raise
        self.placement.answered(place)
        spans.describe_choice(span, place.route, place.choice)
        generation = Generation(request, place, span, first, rest, self._ended)
        generation.first_token_seconds = time.perf_counter() - started
        return generation

    def _ended(self, generation: Generation, outcome: str) -> None:
        model = generation.route.model
        self.placement.leave(generation.place)
        self.placement.check_out()
        _count_end(model, outcome)
        _TOKENS.labels(model, "prompt").inc(generation.prompt_tokens)
        _TOKENS.labels(model, "completion").inc(generation.completion_tokens)
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
                "millrace.first_token_seconds": generation.first_token_seconds,
            }
        )
        generation.span.end()

    def _count(self, generation: Generation, outcome: str) -> None:
        """Tell how the version did; a client that left says nothing about it."""
        tenant, model = generation.route.tenant, generation.route.model
        version = generation.target.version
        if outcome == "ok":
            _FIRST_TOKEN.labels(model).observe(generation.first_token_seconds)
            self.answers.answered(tenant, model, version, _answer(generation))
            self.traffic.add(tenant, model, generation.prompt_tokens, generation.completion_tokens)
        elif outcome == "failed":
            self.answers.failed(tenant, model, version)


def _answer(generation: Generation) -> Answer:
    return Answer(
        generation.completion_tokens,
        generation.first_token_seconds,
        generation.token_seconds,
        generation.finish_reason,
    )


def _count_end(model: str, outcome: str) -> None:
    _ACTIVE.dec()
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


def _engine_request(request: Request, place: Place, span: Span) -> EngineRequest:
    with trace.use_span(span):
        traceparent = telemetry.current_traceparent()
    sampling = {key: value for key, value in request.sampling.items() if value is not None}
    if not request.is_streamed:
        sampling["stream"] = False
    return EngineRequest(
        id=request.id,
        triton_model=place.route.triton_model,
        version=place.version,
        prompt=request.make_prompt(place.target),
        sampling=orjson.dumps(sampling),
        traceparent=traceparent,
        is_plain=_PLAIN.issuperset(sampling),
    )
