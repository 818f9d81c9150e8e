"""Spans: one trace from the client through the gateway to the services and to Triton."""

from typing import Any

import pytest
from gateway_mesh import Mesh
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millrace_testkit.servers import wait_until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
ROLLOUT_ID = "1bf7651916cd43dd8448eb211c80319c"
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Collects what this process's tracers make; the provider cannot be set twice."""
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter, mesh: Mesh) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def of_trace(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    def found() -> list[ReadableSpan]:
        return [
            span
            for span in spans.get_finished_spans()
            if span.name == name and f"{span.context.trace_id:032x}" == TRACE_ID
        ]

    wait_until(lambda: bool(found()), 3, f"the span {name!r}")
    return found()[0]


def test_a_completion_is_one_trace(mesh: Mesh, spans: InMemorySpanExporter) -> None:
    mesh.serve_routes([mesh.route(traceparent=f"00-{ROLLOUT_ID}-{PARENT_ID}-01")])
    answer = mesh.http(traceparent=PARENT).post(
        "/v1/chat/completions", json={**CHAT, "temperature": 0.5, "stop": "x", "max_tokens": 9}
    )
    assert answer.headers["x-millrace-trace-id"] == TRACE_ID
    server = of_trace(spans, "POST /v1/chat/completions")
    assert server.kind is trace.SpanKind.SERVER
    assert server.parent is not None and f"{server.parent.span_id:016x}" == PARENT_ID
    assert server.attributes is not None
    assert server.attributes["http.route"] == "/v1/chat/completions"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["url.path"] == "/v1/chat/completions"
    client = of_trace(spans, "chat demo")
    assert client.kind is trace.SpanKind.CLIENT
    assert client.parent is not None and client.parent.span_id == server.context.span_id
    attributes = dict(client.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "demo"
    assert attributes["gen_ai.response.model"] == "demo@1"
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.max_tokens"] == 9
    assert attributes["gen_ai.request.stop_sequences"] == ("x",)
    assert attributes["gen_ai.usage.input_tokens"] == 7
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert [f"{link.context.trace_id:032x}" for link in client.links] == [ROLLOUT_ID]
    expected = f"00-{TRACE_ID}-{client.context.span_id:016x}-01"
    assert mesh.triton.metadata[-1]["traceparent"] == expected


def test_a_stream_is_in_its_span_to_its_end(mesh: Mesh, spans: InMemorySpanExporter) -> None:
    mesh.triton.answer.pause_seconds = 0.05
    http = mesh.http(traceparent=PARENT)
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        answer.read()
    server, client = of_trace(spans, "POST /v1/chat/completions"), of_trace(spans, "chat demo")
    assert server.end_time is not None and server.start_time is not None
    assert client.end_time is not None and client.start_time is not None
    assert server.end_time - server.start_time > 150e6, "nanoseconds of three pauses"
    assert client.end_time <= server.end_time


def test_a_call_upstream_is_in_the_trace(mesh: Mesh, spans: InMemorySpanExporter) -> None:
    body = {"source": {"type": "python_standard_library"}}
    assert mesh.http(traceparent=PARENT).post("/v1/datasets", json=body).status_code == 200
    server = of_trace(spans, "POST /v1/datasets")
    client = of_trace(spans, "/millrace.data.v1.DataService/CreateDataset")
    assert client.parent is not None and client.parent.span_id == server.context.span_id
    seen = mesh.seen.metadata[-1]["traceparent"]
    assert seen == f"00-{TRACE_ID}-{client.context.span_id:016x}-01"


def test_refusals_and_faults(mesh: Mesh, spans: InMemorySpanExporter) -> None:
    mesh.http("wrong", traceparent=PARENT).get("/v1/models")
    refused = of_trace(spans, "GET _unknown")
    assert (refused.attributes or {})["http.response.status_code"] == 401
    assert refused.status.status_code is trace.StatusCode.UNSET
    spans.clear()
    mesh.triton.answer.failure = None
    mesh.triton.answer.pieces = []
    mesh.http(traceparent=PARENT).post("/v1/chat/completions", json=CHAT)
    failed = of_trace(spans, "POST /v1/chat/completions")
    assert (failed.attributes or {})["error.type"] == "503"
    assert failed.status.status_code is trace.StatusCode.ERROR


def test_probes_make_no_spans(mesh: Mesh, spans: InMemorySpanExporter) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        mesh.http(traceparent=PARENT).get(path)
    mesh.http().get("/v1/models")
    wait_until(lambda: bool(spans.get_finished_spans()), 3, "the span after them")
    names = {span.name for span in spans.get_finished_spans()}
    assert not any("livez" in name or "readyz" in name or "metrics" in name for name in names)
