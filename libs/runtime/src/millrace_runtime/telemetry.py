"""Traces: set-up, the local span store, and carrying a context over every hop.

Spans go to OTLP when the standard ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, and to
``$MILLRACE_TRACE_DIRECTORY`` as JSON lines when that is set (the embedded default), where
``millrace trace`` reads them. A context crosses a hop as a W3C ``traceparent`` string: in
REST and gRPC metadata, in a CloudEvent, in a work row, in a job's environment.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

LOG = logging.getLogger(__name__)

TRACE_DIRECTORY_VARIABLE = "MILLRACE_TRACE_DIRECTORY"
TRACEPARENT_VARIABLE = "TRACEPARENT"

_EXPORT_DELAY_MILLISECONDS = 500
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("millrace")


class FileSpanExporter(SpanExporter):
    """Appends spans, one JSON object a line, to a file of this process's own.

    One write call a batch, on a file opened for appending: a reader sees whole lines, and a
    killed process loses at most its last half second of spans. So does one whose disk is full:
    a line that was broken off is ended before the next, and readers pass it over.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._is_broken_off = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(_span_document(span)) + "\n" for span in spans).encode()
        with self._lock:
            if self._is_broken_off:
                lines = b"\n" + lines
            try:
                written = self._file.write(lines)
            except OSError:  # no trace is worth failing for
                return SpanExportResult.FAILURE
            self._is_broken_off = written != len(lines)
        return SpanExportResult.FAILURE if self._is_broken_off else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


def start_tracing(service_name: str) -> Callable[[], None]:
    """Install the process's tracer provider; return what flushes and stops it."""
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    directory = os.environ.get(TRACE_DIRECTORY_VARIABLE)
    if directory:
        _export_to_file(provider, Path(directory) / f"{service_name}-{os.getpid()}.jsonl")
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        # Imported here: a service without a collector need not load the exporter.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _export_to_file(provider: TracerProvider, path: Path) -> None:
    try:
        exporter = FileSpanExporter(path)
    except OSError as error:  # a full disk: a service or a job that runs untraced still runs
        LOG.warning("spans are not kept: %s", error)
        return
    provider.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_DELAY_MILLISECONDS)
    )


def current_traceparent() -> str:
    """The W3C traceparent of the current span; empty when there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def context_from(traceparent: str) -> Context:
    """The context that a traceparent names; a root context when it is empty or malformed."""
    return _PROPAGATOR.extract({"traceparent": traceparent}, context=Context())


def context_from_environ() -> Context:
    """The context that this process was started in."""
    return context_from(os.environ.get(TRACEPARENT_VARIABLE, ""))


@contextmanager
def span(
    name: str,
    *,
    traceparent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: dict[str, str | int | float | bool] | None = None,
    links: Sequence[str] = (),
) -> Iterator[Span]:
    """A span under ``traceparent`` (``None``: under the current span), linked to ``links``."""
    context = None if traceparent is None else context_from(traceparent)
    resolved = [
        Link(trace.get_current_span(context_from(link)).get_span_context())
        for link in links
        if link
    ]
    with _TRACER.start_as_current_span(
        name, context=context, kind=kind, attributes=attributes, links=resolved
    ) as current:
        yield current


def _span_document(span: ReadableSpan) -> dict[str, object]:
    """A span with the field names of OTLP's JSON encoding, flat, the service beside it."""
    context = span.get_span_context()
    assert context is not None
    parent = span.parent
    return {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "parentSpanId": f"{parent.span_id:016x}" if parent else "",
        "name": span.name,
        "kind": span.kind.name,
        "service": span.resource.attributes["service.name"],
        "startTimeUnixNano": span.start_time,
        "endTimeUnixNano": span.end_time,
        "status": span.status.status_code.name,
        "statusMessage": span.status.description or "",
        "attributes": {key: _plain(value) for key, value in (span.attributes or {}).items()},
        "links": [f"{link.context.trace_id:032x}" for link in span.links],
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
