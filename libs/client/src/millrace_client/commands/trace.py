"""``millrace trace``: one trace as a tree, across all services."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from millrace_client import text, traces
from millrace_client.connection import connection
from millrace_client.errors import MillraceError
from millrace_client.output import Columns, JsonOption, console, print_json, show_list
from millrace_client.traces import Group, Node, Span, Trace

_MANY = 3
_COLORS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow", "red")


class NoSuchTrace(MillraceError):
    pass


def trace(
    context: typer.Context,
    trace_id: Annotated[
        str, typer.Argument(help="A trace's id or its beginning; all recent ones when left out.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Show each of many alike, not the longest alone.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Recent ones listed.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of one request, or of a model's whole life, went.

    Every answer's header x-millrace-trace-id names its trace. Spans are read from
    $MILLRACE_HOME/traces; with OTEL_EXPORTER_OTLP_ENDPOINT set they go to a collector too.
    """
    directory = connection(context).home.traces
    if not trace_id:
        recent = traces.assemble(traces.read_spans(directory))[:limit]
        show_list(
            [summary(each) for each in recent],
            _COLUMNS,
            as_json=as_json,
            empty=f"there are no traces in {directory}",
        )
        return
    found = traces.find(directory, trace_id)
    if len(found) != 1:
        raise NoSuchTrace(f"{len(found)} traces in {directory} begin with {trace_id!r}")
    if as_json:
        print_json([span.__dict__ for span in found[0].spans])
        return
    console().print(tree(found[0], everything=everything))
    for other in traces.linked_from(directory, found[0].id):
        console().print(f"linked from {other}")


_COLUMNS: Columns = {
    "trace": lambda t: t["id"],
    "root": lambda t: t["root"],
    "started": lambda t: text.ago(t["start"]),
    "took": lambda t: text.duration(t["seconds"]),
    "spans": lambda t: t["spans"],
    "services": lambda t: " ".join(t["services"]),
}


def summary(one: Trace) -> dict[str, object]:
    """What a list of traces says of one."""
    first = min(one.roots, key=lambda root: root.span.start).span
    return {
        "id": one.id,
        "root": f"{first.service}: {first.name}",
        "start": one.start,
        "seconds": one.seconds,
        "spans": len(one.spans),
        "services": [service.removeprefix("millrace-") for service in one.services],
    }


def tree(one: Trace, *, everything: bool = False) -> Tree:
    """A trace for people: each span's service, name, start since the beginning, duration."""
    colors = {service: _COLORS[i % len(_COLORS)] for i, service in enumerate(one.services)}
    result = Tree(
        f"[bold]trace {one.id}[/]  {text.duration(one.seconds)}, {len(one.spans)} spans, "
        f"{len(one.services)} services"
    )
    _grow(result, one.roots, one, colors, everything)
    return result


def _grow(
    branch: Tree, nodes: Sequence[Node], one: Trace, colors: dict[str, str], everything: bool
) -> None:
    for group in traces.grouped(nodes):
        shown = group.nodes if everything or len(group.nodes) < _MANY else [group.longest]
        for node in shown:
            label = _label(node.span, one.start, colors)
            if len(shown) < len(group.nodes):
                label.append(_among(group), style="dim")
            _grow(branch.add(label), node.children, one, colors, everything)


def _label(span: Span, start: float, colors: dict[str, str]) -> Text:
    service = span.service.removeprefix("millrace-")
    label = Text(f"{service} ", style=colors[span.service])
    label.append(span.name, style="bold" if not span.error else "bold red")
    label.append(f"  +{text.duration(span.start - start)}", style="dim")
    label.append(f"  {text.duration(span.seconds)}")
    if span.error:
        label.append(f"  {span.error}", style="red")
    for link in span.links:
        label.append(f"  ↪ {link}", style="italic")
    return label


def _among(group: Group) -> str:
    return f"  (longest of {len(group.nodes)}, median {text.duration(group.median_seconds)})"
