"""One completion: admit it, choose a version, ask the engine, follow it to its end."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from prometheus_client import Counter, Gauge, Histogram

from millrace_gateway import route
from millrace_gateway.answers import AnswerCounts
from millrace_gateway.route import Choice, Route, RouteTable, Target
from millrace_gateway.triton import Delta, Engine, EngineFailed, EngineRequest
from millrace_runtime import telemetry
from millrace_runtime.errors import MillraceError, ResourceExhausted, Unavailable

_TRACER = trace.get_tracer("millrace")
_ROUTE_CHANGE_SECONDS = 1.0

_ACTIVE = Gauge("millrace_generations_active", "Completions in progress.")
_ENDED = Counter("millrace_generations_total", "Completions that ended.", ["model", "outcome"])
_TOKENS = Counter("millrace_generation_tokens_total", "Tokens.", ["model", "kind"])
_FIRST_TOKEN = Histogram(
    "millrace_generation_first_token_seconds",
    "From admission to the first token.",
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
    """

    id: str
    tenant: str
    operation: str
    model: str
    make_prompt: PromptMaker
    sampling: dict[str, object]


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
    """Starts completions, ``maximum`` at a time."""

    def __init__(
        self,
        routes: RouteTable,
        engine: Engine,
        maximum: int,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self.routes = routes
        self._engine = engine
        self._maximum = maximum
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
        if self._active >= self._maximum:
            raise ResourceExhausted(
                f"{self._maximum} completions are in progress; try again in a second",
                reason="RATE_LIMIT_EXCEEDED",
            )
        found, pinned = self.routes.find(request.tenant, request.model)
        span = _start_span(request)
        self._active += 1
        _ACTIVE.set(self._active)
        started = time.perf_counter()
        try:
            generation = await self._attempt(request, found, pinned, span)
        except BaseException as error:
            outcome = "refused" if isinstance(error, MillraceError) else "cancelled"
            self._release(found.model, outcome)
            span.set_status(StatusCode.ERROR, str(error))
            span.end()
            raise
        generation.first_token_seconds = time.perf_counter() - started
        _FIRST_TOKEN.labels(found.model).observe(generation.first_token_seconds)
        return generation

    async def _attempt(self, request: Request, found: Route, pinned: str, span: Span) -> Generation:
        failed: set[Choice] = set()
        while True:
            found, choice = await self._choose(request, found, pinned, failed)
            rest = self._engine.generate(choice.endpoint, _ask(request, found, choice, span))
            try:
                first = await _first(rest)
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
            else:
                _describe_choice(span, found, choice)
                return Generation(request, found, choice, span, first, rest, self._ended)

    async def _choose(
        self, request: Request, found: Route, pinned: str, failed: Collection[Choice]
    ) -> tuple[Route, Choice]:
        targets = route.candidates(found, pinned)
        choice = route.choose(targets, self._random_number(), failed)
        if choice is None:
            await self.routes.wait_for_change(_ROUTE_CHANGE_SECONDS)
            found, pinned = self.routes.find(request.tenant, request.model)
            targets = route.candidates(found, pinned)
            choice = route.choose(targets, self._random_number())
        assert choice is not None, "there are candidates, and nothing is excluded"
        return found, choice

    def _ended(self, generation: Generation, outcome: str) -> None:
        model = generation.route.model
        _TOKENS.labels(model, "prompt").inc(generation.prompt_tokens)
        _TOKENS.labels(model, "completion").inc(generation.completion_tokens)
        self._release(model, outcome)
        self._count(generation, outcome)
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


async def collect(generation: Generation) -> str:
    """The whole answer's text.

    Raises:
        Unavailable: the engine broke off.
    """
    return "".join([delta.text async for delta in generation.deltas()])


def _ask(request: Request, found: Route, choice: Choice, span: Span) -> EngineRequest:
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


def _start_span(request: Request) -> Span:
    """A client span as the OpenTelemetry conventions for generative AI have it."""
    attributes: dict[str, str | int | float | list[str]] = {
        "gen_ai.operation.name": request.operation,
        "gen_ai.provider.name": "millrace",
        "gen_ai.request.model": request.model,
        "gen_ai.response.id": request.id,
    }
    for key in ("temperature", "top_p", "max_tokens", "seed"):
        value = request.sampling.get(key)
        if isinstance(value, int | float):
            attributes[f"gen_ai.request.{key}"] = value
    stop = request.sampling.get("stop")
    if isinstance(stop, list):
        attributes["gen_ai.request.stop_sequences"] = stop
    name = f"{request.operation} {request.model.partition('@')[0]}"
    return _TRACER.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def _describe_choice(span: Span, found: Route, choice: Choice) -> None:
    host, _, port = choice.endpoint.rpartition(":")
    span.set_attributes(
        {
            "gen_ai.response.model": f"{found.model}@{choice.target.version}",
            "server.address": host,
            "server.port": int(port),
            "millrace.artifact.digest": choice.target.artifact_digest,
        }
    )
    if choice.target.traceparent:
        rollout = trace.get_current_span(telemetry.context_from(choice.target.traceparent))
        span.add_link(rollout.get_span_context(), {"millrace.link": "rollout"})


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
