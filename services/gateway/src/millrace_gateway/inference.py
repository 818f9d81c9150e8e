"""Inference with tensors: admit a request, choose a version, ask it, and count how it answered.

What ``generation.py`` is to text, this is to the Open Inference Protocol; both share the routes,
the keys' limits and the counts by which canaries are judged.
"""

import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from prometheus_client import Counter, Gauge, Histogram

from millrace_gateway import route, spans
from millrace_gateway.answers import Answer, AnswerCounts
from millrace_gateway.deadline import DeadlineExceeded, seconds_to, within
from millrace_gateway.domain import Principal
from millrace_gateway.inference_engine import InferenceEngine, Terms
from millrace_gateway.limits import Limiter, Reservation
from millrace_gateway.placement import Guest, Place, Placement
from millrace_gateway.route import Choice, Route
from millrace_gateway.triton import EngineFailed
from millrace_runtime import telemetry
from millrace_runtime.errors import InvalidArgument, MillraceError, NotFound, Unavailable

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "parameters",
    "statistics",
)

_TRACER = trace.get_tracer("millrace")
_MOST_REFERENCE_CHARACTERS = 300
_COUNT = struct.Struct("<i")
# With these a text engine answers several requests together.
_GROUPING = ("group", "cancel")
# Of Millrace's text engines; other models have no such outputs, and use no tokens.
_TOKEN_COUNTS = ("token_count", "prompt_token_count")

_ACTIVE = Gauge("millrace_inferences_active", "Inference requests in progress.")
_ENDED = Counter(
    "millrace_inferences_total", "Inference requests that ended.", ["model", "outcome"]
)
_SECONDS = Histogram(
    "millrace_inference_seconds", "Time to the end of an inference request.", ["model"]
)

Question = Callable[[Place], Awaitable[Any]]


@dataclass(frozen=True)
class Asked:
    """What a client asks for.

    Attributes:
        model: ``demo``, ``demo@7``, ``demo@champion``, as ``reference`` makes it.
        question: makes the ModelInferRequest for the version that was chosen; one whose inputs
            depend on the version may ask for its metadata.
        is_stream: the answer may come in several parts.
        ends_by: moment of the loop's clock until which the client waits; None without a deadline.
    """

    principal: Principal
    model: str
    question: Question
    is_stream: bool
    ends_by: float | None = None


@dataclass
class _Progress:
    """A request on its way."""

    asked: Asked
    span: Span
    reservation: Reservation | None
    started_seconds: float = field(default_factory=time.perf_counter)
    asked_seconds: float = 0.0
    first_seconds: float | None = None
    last_seconds: float = 0.0
    responses: int = 0
    prompt_tokens: int = 0
    tokens: int = 0

    def heard(self, response: Any) -> None:
        self.responses += 1
        self.last_seconds = time.perf_counter() - self.asked_seconds
        if self.first_seconds is None:
            self.first_seconds = self.last_seconds
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
            if output.name in _TOKEN_COUNTS and len(raw) == _COUNT.size:
                count = _COUNT.unpack(raw)[0]
                if output.name == "token_count":
                    self.tokens += count
                else:
                    self.prompt_tokens = count

    def answer(self) -> Answer:
        """What was heard; without a stream all tokens come at once, and none has its own time."""
        first, is_streamed = self.first_seconds or 0.0, self.responses > 1
        token_seconds = None
        if is_streamed and self.tokens > 1:
            token_seconds = (self.last_seconds - first) / (self.tokens - 1)
        return Answer(self.tokens, first, token_seconds, is_timed=is_streamed)

    def settle(self) -> None:
        if self.reservation is not None:
            used = self.tokens + self.prompt_tokens
            self.reservation.settle(used if self.reservation.tokens else 0)


class Inference:
    """Answers inference requests: those that their key's limits and the entrance let in."""

    def __init__(
        self,
        placement: Placement,
        engine: InferenceEngine,
        counts: AnswerCounts,
        limiter: Limiter,
    ) -> None:
        self.engine = engine
        self._placement = placement
        self._routes = placement.routes
        self._counts = counts
        self._limiter = limiter

    async def infer(self, asked: Asked) -> Any:
        """The one ModelInferResponse of a model that is not decoupled.

        Raises:
            MillraceError: as ``answers``.
        """
        async with aclosing(self.answers(asked)) as responses:
            found = [response async for response in responses]
        return found[0]

    async def answers(self, asked: Asked) -> AsyncGenerator[Any, None]:
        """The ModelInferResponses as they come. Close it, or read it to its end.

        A version that fails before its first response is asked once more, elsewhere if there is
        another endpoint or version, as completions are.

        Raises:
            MillraceError: no such model, too many requests, or what the engine said.
        """
        failed: set[Choice] = set()
        guest = _guest(asked)
        with self._in_progress(asked, guest) as progress:
            attending = self._placement.attend(guest.tenant, guest.model)
            await within(asked.ends_by, attending)
            while True:
                entering = self._placement.enter(guest, failed)
                place = await within(asked.ends_by, entering)
                try:
                    async with aclosing(self._ask(place, progress)) as responses:
                        async for response in responses:
                            yield response
                except EngineFailed as error:
                    self._note_failure(place, progress, error)
                    if failed or progress.first_seconds is not None:
                        raise Unavailable(
                            f"model {asked.model!r} does not answer: {error}",
                            reason="ENGINE_FAILED",
                        ) from error
                    failed.add(place.choice)
                else:
                    self._note_success(place, progress)
                    return
                finally:
                    self._placement.leave(place)

    def check_ready(self, tenant: str, model: str) -> None:
        """Return when the version would be asked; the registry has had each answer a question.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: it is known, and does not serve yet.
        """
        found, pinned = self._routes.find(tenant, model)
        route.candidates(found, pinned)

    @property
    def is_ready(self) -> bool:
        """Whether the gateway knows its routes."""
        return self._routes.revision >= 0

    async def metadata(self, tenant: str, model: str) -> Any:
        """The ModelMetadataResponse of a version; its ``versions`` are all that can be asked.

        Raises:
            MillraceError: as ``check_ready``, or the engine does not say.
        """
        place = self._placement.any(tenant, model)
        response = await _told(self.engine.metadata(place))
        versions = sorted(target.version for target in place.route.targets if target.endpoints)
        response.versions[:] = [str(version) for version in versions]
        return response

    async def config(self, tenant: str, model: str) -> Any:
        """The ModelConfigResponse of a version.

        Raises:
            MillraceError: as ``metadata``.
        """
        return await _told(self.engine.config(self._placement.any(tenant, model)))

    async def statistics(self, tenant: str, model: str) -> Sequence[Any]:
        """ModelStatistics: an entry for each loaded version at each endpoint.

        Args:
            model: all of the tenant's when empty.

        Raises:
            MillraceError: as ``metadata``.
        """
        places = self._all_places(tenant, model)
        responses = [await _told(self.engine.statistics(place)) for place in places]
        return [entry for response in responses for entry in response.model_stats]

    def _all_places(self, tenant: str, model: str) -> Sequence[Place]:
        routes, pinned = self._routes.of_tenant(tenant), ""
        if model:
            found, pinned = self._routes.find(tenant, model)
            routes = [found]
        return [
            Place(found, Choice(target, endpoint))
            for found in routes
            for target in (route.candidates(found, pinned) if pinned else found.targets)
            for endpoint in target.endpoints
        ]

    async def _ask(self, place: Place, progress: _Progress) -> AsyncGenerator[Any, None]:
        asked = progress.asked
        spans.describe_choice(progress.span, place.route, place.choice)
        with trace.use_span(progress.span):
            traceparent = telemetry.current_traceparent()
        self._placement.asked(place)
        request = await within(asked.ends_by, asked.question(place))
        terms = Terms(asked.is_stream, seconds_to(asked.ends_by), traceparent)
        progress.asked_seconds = time.perf_counter()
        async with aclosing(self.engine.answer(place, request, terms)) as responses:
            async for response in responses:
                if progress.first_seconds is None:
                    self._placement.answered(place)
                progress.heard(response)
                yield response

    @contextmanager
    def _in_progress(self, asked: Asked, guest: Guest) -> Iterator[_Progress]:
        found, _ = self._routes.find(guest.tenant, guest.model)
        self._placement.check_in(guest.priority)
        try:
            reservation = self._reserve(asked)
        except MillraceError:
            self._placement.check_out()
            raise
        progress = _Progress(asked, _start_span(asked, found), reservation)
        outcome = "cancelled"
        _ACTIVE.inc()
        try:
            yield progress
            outcome = "ok"
        except Exception as error:
            outcome = _outcome_of(error)
            progress.span.set_status(StatusCode.ERROR, str(error))
            raise
        finally:
            self._placement.check_out()
            _ACTIVE.dec()
            _ENDED.labels(found.model, outcome).inc()
            _SECONDS.labels(found.model).observe(time.perf_counter() - progress.started_seconds)
            progress.settle()
            progress.span.end()

    def _reserve(self, asked: Asked) -> Reservation | None:
        """Hold the key to its limits.

        How many tokens a request takes shows in the answer; what it took beyond the one that is
        reserved is missing from what the key may take next.

        Raises:
            ResourceExhausted: one is reached.
        """
        allowance = self._limiter.of(asked.principal)
        if allowance is None:
            return None
        return allowance.reserve(1 if allowance.limits.tokens_per_minute is not None else 0)

    def _note_success(self, place: Place, progress: _Progress) -> None:
        if progress.first_seconds is None:  # a decoupled model may answer with nothing
            self._placement.answered(place)
        found, answer = place.route, progress.answer()
        self._counts.answered(found.tenant, found.model, place.version, answer)

    def _note_failure(self, place: Place, progress: _Progress, error: EngineFailed) -> None:
        progress.span.add_event(
            "attempt failed", {"endpoint": place.choice.endpoint, "reason": str(error)}
        )
        self._counts.failed(place.route.tenant, place.route.model, place.version)
        if progress.first_seconds is None:
            self._placement.failed(place)


def _guest(asked: Asked) -> Guest:
    principal = asked.principal
    return Guest(principal.tenant, asked.model, principal.limits.priority, principal.key_id)


def _outcome_of(error: Exception) -> str:
    if isinstance(error, DeadlineExceeded):
        return "cancelled"  # as when the client leaves
    is_refusal = isinstance(error, MillraceError) and not isinstance(error, Unavailable)
    return "refused" if is_refusal else "failed"


def reference(model: str, version: str) -> str:
    """``model@version``, from a name that may have a version or an alias of its own.

    Raises:
        NotFound: nothing can be called so.
        InvalidArgument: two versions are named, which differ.
    """
    name, _, pinned = model.partition("@")
    if pinned and version and pinned != version:
        raise InvalidArgument(
            f"the model {model!r} names another version than {version!r}", field="model_version"
        )
    found = f"{name}@{pinned or version}" if pinned or version else name
    if not name or len(found) > _MOST_REFERENCE_CHARACTERS:
        raise NotFound("no model can have this name and version", field="model_name")
    return found


def check_parameters(parameters: Collection[str], where: str) -> None:
    """Refuse what would reach beyond the request itself.

    Raises:
        InvalidArgument: naming the parameter.
    """
    for name in parameters:
        if name.startswith("shared_memory_"):
            message = "shared memory is not offered; send the tensor's data"
        elif name.startswith("sequence_"):
            message = "models keep no state between requests; leave sequences out"
        elif name in _GROUPING:
            message = "answers leave alone here; it is for the gateway's own use"
        else:
            continue
        raise InvalidArgument(f"{where}.{name}: {message}", field=f"{where}.{name}")


def check_request(request: Any) -> None:
    """``check_parameters`` on a whole ModelInferRequest, or the body that becomes one.

    Raises:
        InvalidArgument: naming the parameter.
    """
    check_parameters(request.parameters, "parameters")
    for kind, tensors in (("inputs", request.inputs), ("outputs", request.outputs)):
        for index, tensor in enumerate(tensors):
            check_parameters(tensor.parameters, f"{kind}[{index}].parameters")


async def _told(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except EngineFailed as error:
        raise Unavailable(f"the model does not say: {error}", reason="ENGINE_FAILED") from error


def _start_span(asked: Asked, found: Route) -> Span:
    return _TRACER.start_span(
        f"infer {found.model}",
        kind=SpanKind.CLIENT,
        attributes={
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": "ModelStreamInfer" if asked.is_stream else "ModelInfer",
            "gen_ai.request.model": asked.model,
        },
    )
