import pytest

from millrace_client.traces import Span
from millrace_mesh.demo import timings
from millrace_mesh.demo.timings import Timing

RUN = "tenants/default/runs/run-1"


def fact(subject: str, second: float, **data: object) -> dict[str, object]:
    time = f"2026-11-20T10:00:{second:09.6f}Z"
    return {"subject": f"millrace.default.{subject}", "time": time, "data": data}


def checkpoint(number: int) -> str:
    return f"{RUN}/checkpoints/ckpt-{number}"


def span(start: float, end: float, **fields: object) -> Span:
    base = 1_795_168_800  # 2026-11-20T10:00:00Z
    defaults = {"name": "x", "service": "millrace-compressor", "kind": "INTERNAL", "error": ""}
    return Span("t", "s", "", start=base + start, end=base + end, **{**defaults, **fields})


def finished(number: int, second: float) -> dict[str, object]:
    data = {"checkpoint": checkpoint(number), "model": "demo", "step": str(60 * number)}
    return fact("trainer.checkpoint.finished", second, **data)


FACTS = [
    finished(1, 1),
    fact("registry.version.registered", 9, checkpoint=checkpoint(1), model="demo", number="1"),
    fact("registry.rollout.settled", 15, checkpoint=checkpoint(1), model="demo"),
    finished(2, 20),
]


def compressed(number: int, start: float, end: float, **fields: object) -> Span:
    return span(start, end, attributes={"millrace.checkpoint": checkpoint(number)}, **fields)


def answered(version: str, start: float, end: float, **fields: object) -> Span:
    attributes = {"gen_ai.response.model": version}
    return span(start, end, attributes=attributes, service="millrace-gateway", **fields)


def test_each_step_of_the_way_is_counted_from_the_fact():
    spans = [
        compressed(1, 1.25, 8),
        answered("demo@1", 10, 11.5),
        answered("demo@1", 12, 12.5),
        answered("demo@2", 3, 4),
    ]
    first, second = timings.of_facts(FACTS, spans, "demo")
    assert (first.model, first.step, first.version) == ("demo", 60, 1)
    assert first.compression_started == pytest.approx(0.25)
    assert first.settled == pytest.approx(14)
    assert first.first_token == pytest.approx(10.5)
    assert second == Timing("demo", 120, None, None, None, None)


def test_an_answer_that_failed_is_none():
    spans = [answered("demo@1", 10, 11, error="broke off")]
    assert timings.of_facts(FACTS, spans, "demo")[0].first_token is None


def test_a_compression_that_was_taken_over_began_when_it_first_began():
    spans = [compressed(1, 7, 9), compressed(1, 2, 3)]
    started = timings.of_facts(FACTS, spans, "demo")[0].compression_started
    assert started == pytest.approx(1)


def test_other_models_are_left_out():
    assert timings.of_facts(FACTS, [], "ft:demo:default::abc") == []
