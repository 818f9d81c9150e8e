"""Traces from the local span store: spans read from JSON lines, and put together as trees.

The files are written by ``millrace_runtime.telemetry``, one a process.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Span:
    """One span. Times are in seconds since the epoch; ``links`` are ids of other traces."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    kind: str
    start: float
    end: float
    error: str = ""
    links: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Node:
    """A span and what it caused, in order of time."""

    span: Span
    children: Sequence["Node"]


@dataclass(frozen=True)
class Group:
    """Siblings of one name and service: shown together when they are many.

    ``longest`` stands for them all.
    """

    nodes: Sequence[Node]

    @property
    def longest(self) -> Node:
        return max(self.nodes, key=lambda node: node.span.seconds)

    @property
    def median_seconds(self) -> float:
        return median(node.span.seconds for node in self.nodes)


@dataclass(frozen=True)
class Trace:
    """All that is known of one trace.

    Attributes:
        roots: its trees; more than one when a parent's span was never written, because its
            process was killed or has not ended it yet.
    """

    id: str
    roots: Sequence[Node]
    spans: Sequence[Span]

    @property
    def start(self) -> float:
        return min(span.start for span in self.spans)

    @property
    def seconds(self) -> float:
        return max(span.end for span in self.spans) - self.start

    @property
    def services(self) -> list[str]:
        return sorted({span.service for span in self.spans})

    @property
    def links(self) -> list[str]:
        """Other traces that this one's spans point at."""
        return sorted({link for span in self.spans for link in span.links} - {self.id})


def read_spans(directory: Path, containing: str = "") -> Iterator[Span]:
    """Every span in the store; only lines that contain a text, when one is given.

    A line that is not whole (its process was killed while writing) is passed over.
    """
    for path in sorted(directory.glob("*.jsonl")):
        with path.open(errors="replace") as file:
            for line in file:
                if containing in line:
                    try:
                        yield _span(json.loads(line))
                    except ValueError:
                        continue


def assemble(spans: Iterable[Span]) -> list[Trace]:
    """The traces that the spans belong to, newest first."""
    by_trace: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_trace[span.trace_id].append(span)
    traces = [_trace(trace_id, members) for trace_id, members in by_trace.items()]
    return sorted(traces, key=lambda trace: trace.start, reverse=True)


def find(directory: Path, prefix: str) -> list[Trace]:
    """The traces whose id begins with ``prefix``."""
    spans = (span for span in read_spans(directory, prefix) if span.trace_id.startswith(prefix))
    return assemble(spans)


def linked_from(directory: Path, trace_id: str) -> list[str]:
    """Ids of the traces that point at this one."""
    spans = read_spans(directory, trace_id)
    return sorted({span.trace_id for span in spans if trace_id in span.links} - {trace_id})


def grouped(nodes: Sequence[Node]) -> list[Group]:
    """Siblings by service and name, in order of each one's first."""
    groups: dict[tuple[str, str], list[Node]] = defaultdict(list)
    for node in nodes:
        groups[node.span.service, node.span.name].append(node)
    return [Group(members) for members in groups.values()]


def _trace(trace_id: str, spans: Sequence[Span]) -> Trace:
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start):
        children[span.parent_id if span.parent_id in known else ""].append(span)

    def grow(span: Span) -> Node:
        return Node(span, [grow(child) for child in children[span.span_id]])

    return Trace(trace_id, [grow(root) for root in children[""]], spans)


def _span(document: dict[str, Any]) -> Span:
    failed = document["status"] == "ERROR"
    return Span(
        trace_id=document["traceId"],
        span_id=document["spanId"],
        parent_id=document["parentSpanId"],
        name=document["name"],
        service=document["service"],
        kind=document["kind"],
        start=document["startTimeUnixNano"] / 1e9,
        end=document["endTimeUnixNano"] / 1e9,
        error=(document["statusMessage"] or "error") if failed else "",
        links=tuple(document["links"]),
        attributes=document["attributes"],
    )
