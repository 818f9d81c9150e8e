"""The whole chain is one trace, with every hop of the topology that the chain takes.

Runs before ``test_kill.py``: what a process knows of a trace is lost with it.
"""

import json
from typing import Any

from openai.types.fine_tuning import FineTuningJob

from millrace.topology import edges
from tests.e2e.lifecycle import Mesh

# Hops of unhappy ends, which this chain does not take.
NOT_TAKEN = {"dataset.failed", "compression.rejected", "compression.failed", "rollout.reversed"}


def spans(mesh: Mesh) -> list[dict[str, Any]]:
    files = mesh.layout.home.traces.glob("*.jsonl")
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    return [span for span in found if span["traceId"] == mesh.trace_id]


def test_every_hop_is_in_the_trace(mesh: Mesh, tuned: FineTuningJob) -> None:
    assert tuned.status == "succeeded"

    def hops() -> set[tuple[str, str, str]]:
        published = {
            (s["service"], s["attributes"]["messaging.destination.name"])
            for s in spans(mesh)
            if s["name"].startswith("publish ")
        }
        processed = {
            (s["attributes"]["messaging.destination.name"], s["service"])
            for s in spans(mesh)
            if s["name"].startswith("process ")
        }
        return {
            (
                producer.removeprefix("millrace-"),
                subject.split(".", 3)[3],
                c.removeprefix("millrace-"),
            )
            for producer, subject in published
            for other, c in processed
            if other == subject
        }

    wanted = {edge for edge in edges() if edge[1] not in NOT_TAKEN}
    mesh.until(lambda: wanted <= hops(), f"hops {wanted}", 30)


def test_jobs_and_answers_are_in_the_trace(mesh: Mesh, model: str, tuned: FineTuningJob) -> None:
    assert tuned.fine_tuned_model
    mesh.openai.completions.create(model=model, prompt="import", max_tokens=2)
    wanted = {
        "job data.build_dataset",
        "job trainer.pretrain",
        "job compressor.compress",
        "job tuner.supervised",
        f"text_completion {model}",
    }
    mesh.until(lambda: wanted <= {span["name"] for span in spans(mesh)}, f"{wanted}", 30)


def orphans(mesh: Mesh) -> dict[str, str]:
    """Name and parent of the spans whose parent is none of the trace's."""
    found = spans(mesh)
    ids = {span["spanId"] for span in found}
    return {span["name"]: span["parentSpanId"] for span in found if span["parentSpanId"] not in ids}


def test_parents_are_there(mesh: Mesh, model: str) -> None:
    """No span hangs in the air: every parent is a span of the trace, or the client's own."""
    mesh.until(lambda: len(spans(mesh)) > 20, "spans", 30)
    assert len(set(orphans(mesh).values())) <= 2, orphans(mesh)
