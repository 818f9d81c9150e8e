"""Spans of completions: client spans as OpenTelemetry's conventions for generative AI have them.

Reference: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from millrace_gateway.route import Choice, Route
from millrace_runtime import telemetry

_TRACER = trace.get_tracer("millrace")


def start(identifier: str, operation: str, model: str, sampling: Mapping[str, object]) -> Span:
    """A span for one completion, ``operation`` being "chat" or "text_completion"."""
    attributes: dict[str, str | int | float | list[str]] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "millrace",
        "gen_ai.request.model": model,
        "gen_ai.response.id": identifier,
    }
    for key in ("temperature", "top_p", "max_tokens", "seed"):
        value = sampling.get(key)
        if isinstance(value, int | float):
            attributes[f"gen_ai.request.{key}"] = value
    stop = sampling.get("stop")
    if isinstance(stop, list):
        attributes["gen_ai.request.stop_sequences"] = stop
    name = f"{operation} {model.partition('@')[0]}"
    return _TRACER.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


@contextmanager
def mirror(model: str, found: Route, choice: Choice, client: Span) -> Iterator[Span]:
    """A span of a trace of its own, linked to the client's request that was copied."""
    link = trace.Link(client.get_span_context(), {"millrace.link": "mirrored"})
    root = Context()
    with _TRACER.start_as_current_span(
        f"mirror {model}", root, kind=SpanKind.CLIENT, links=[link]
    ) as span:
        describe_choice(span, found, choice)
        yield span


def describe_choice(span: Span, found: Route, choice: Choice) -> None:
    """Say which version answered, where, and what brought it there."""
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
