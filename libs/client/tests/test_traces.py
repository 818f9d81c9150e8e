import json
from pathlib import Path

import pytest

from millrace_client import traces

TRACE = "a" * 32
OTHER = "b" * 32


def span(span_id: str, parent: str = "", **fields: object) -> dict[str, object]:
    """A line of the store; times are in seconds after the trace's beginning."""
    start, end = float(fields.pop("start", 0)), float(fields.pop("end", 1))
    return {
        "traceId": TRACE,
        "spanId": span_id,
        "parentSpanId": parent,
        "name": span_id,
        "kind": "INTERNAL",
        "service": "millrace-gateway",
        "startTimeUnixNano": int((1000 + start) * 1e9),
        "endTimeUnixNano": int((1000 + end) * 1e9),
        "status": "UNSET",
        "statusMessage": "",
        "attributes": {},
        "links": [],
        **fields,
    }


def store(directory: Path, *files: list[dict[str, object]]) -> Path:
    for index, spans in enumerate(files):
        lines = "".join(json.dumps(each) + "\n" for each in spans)
        (directory / f"{index}.jsonl").write_text(lines)
    return directory


def outline(nodes: object) -> list[object]:
    return [[node.span.span_id, *outline(node.children)] for node in nodes]


def test_spans_of_several_processes_are_one_tree(tmp_path: Path):
    store(
        tmp_path,
        [span("root", end=9), span("late", "root", start=5)],
        [span("early", "root", start=2, service="millrace-trainer"), span("leaf", "early")],
    )
    (found,) = traces.find(tmp_path, TRACE)
    assert outline(found.roots) == [["root", ["early", ["leaf"]], ["late"]]]
    assert found.services == ["millrace-gateway", "millrace-trainer"]
    assert found.seconds == pytest.approx(9)


def test_a_span_whose_parent_was_lost_is_a_root(tmp_path: Path):
    store(tmp_path, [span("orphan", "killed", start=3), span("root")])
    (found,) = traces.find(tmp_path, TRACE)
    assert outline(found.roots) == [["root"], ["orphan"]]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path):
    store(tmp_path, [span("root")])
    with (tmp_path / "0.jsonl").open("a") as file:
        file.write(json.dumps(span("half"))[:100])
    (found,) = traces.find(tmp_path, TRACE[:5])
    assert [each.span_id for each in found.spans] == ["root"]


def test_traces_are_listed_newest_first(tmp_path: Path):
    store(tmp_path, [span("old"), span("new", start=5, traceId=OTHER)])
    assert [t.id for t in traces.assemble(traces.read_spans(tmp_path))] == [OTHER, TRACE]


def test_links_are_known_from_both_ends(tmp_path: Path):
    store(tmp_path, [span("root"), span("linking", traceId=OTHER, links=[TRACE])])
    (other,) = traces.find(tmp_path, OTHER)
    assert other.links == [TRACE]
    assert traces.linked_from(tmp_path, TRACE) == [OTHER]
    assert traces.linked_from(tmp_path, OTHER) == []


def test_siblings_alike_are_one_group(tmp_path: Path):
    polls = [span(f"{i}", "root", name="GET /v1/models", end=i) for i in range(1, 6)]
    store(tmp_path, [span("root", end=9), *polls, span("last", "root", start=8)])
    (found,) = traces.find(tmp_path, TRACE)
    groups = traces.grouped(found.roots[0].children)
    assert [len(group.nodes) for group in groups] == [5, 1]
    assert groups[0].longest.span.span_id == "5"
    assert groups[0].median_seconds == pytest.approx(3)


def test_an_error_has_its_message(tmp_path: Path):
    store(tmp_path, [span("root", status="ERROR", statusMessage="no"), span("x", status="ERROR")])
    (found,) = traces.find(tmp_path, TRACE)
    assert sorted(each.error for each in found.spans) == ["error", "no"]
