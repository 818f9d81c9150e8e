"""The picture of a quality report."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from compressor_builders import TIME, order
from hypothesis import given
from hypothesis import strategies as st

from millrace_compressor import plot
from millrace_compressor.domain import Compression, Load, Measurements, State, Target, Verdict

MEASURED = Measurements(
    original_perplexity=20.0,
    artifact_perplexity=20.1,
    original_size_bytes=400,
    artifact_size_bytes=100,
    original_loads=(Load(1, 160, 0.01, 0.005), Load(16, 1100, 0.07, 0.01)),
    artifact_loads=(Load(1, 660, 0.01, 0.005), Load(16, 2400, 0.07, 0.01)),
)


def compression(
    target: Target, measured: Measurements | None = MEASURED, *, passed: bool = True
) -> Compression:
    wanted = replace(order(), target=target)
    verdict = Verdict(passed) if measured else None
    return Compression(
        "c", wanted, "", TIME, State.SUCCEEDED, measurements=measured, verdict=verdict
    )


def texts(svg: bytes) -> str:
    """What the picture says: matplotlib draws letters, and names them in comments."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.decode()))


def test_it_names_what_it_shows_with_units() -> None:
    drawn = plot.svg(
        [compression(Target.OPENVINO_INT8), compression(Target.ONNX_INT8, passed=False)]
    )
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    said = texts(drawn)
    for word in ("openvino-int8", "onnx-int8 (rejected)", "original", "perplexity", "MiB"):
        assert word in said
    assert "tokens a second" in said and "16 streams" in said and "demo, step 1" in said


def test_what_a_search_tried_is_shown_beside_what_it_took() -> None:
    trial = {"target": "TARGET_OPENVINO_INT4", "size_bytes": 90, "perplexity_increase": 0.01}
    failed = {"target": "TARGET_OPENVINO_INT8", "size_bytes": 0, "chosen": False}
    search = {"trials": [{**trial, "chosen": False}, failed, {**trial, "chosen": True}]}
    said = texts(plot.svg([compression(Target.AUTO, replace(MEASURED, search=search))]))
    assert "tried by a search" in said
    assert "auto: openvino-int4" in said


def test_it_says_how_a_task_was_answered() -> None:
    task = {"metric": "TASK_METRIC_TOKEN_F1", "rows": 64, "digest": "sha256:1"}
    measured = [
        replace(MEASURED, task={**task, "original_score": 0.5, "artifact_score": score})
        for score in (0.49, 0.25)
    ]
    both = [compression(Target.OPENVINO_INT8, measured[0]), compression(Target.AUTO, measured[1])]
    said = texts(plot.svg(both))
    assert "token f1 of 64 answers: original 50.0%, openvino-int8 49.0%, auto 25.0%" in said


def test_the_same_measurements_make_the_same_picture() -> None:
    made = [compression(Target.OPENVINO_INT8)]
    assert plot.svg(made) == plot.svg(made)


def test_the_streams_are_those_at_which_all_were_measured() -> None:
    alone = replace(MEASURED, artifact_loads=MEASURED.artifact_loads[:1])
    drawn = plot.svg([compression(Target.OPENVINO_INT8), compression(Target.ONNX_INT8, alone)])
    assert "one stream" in texts(drawn)


@pytest.mark.parametrize("measured", [None, Measurements()])
def test_what_was_not_measured_is_said_to_be(measured: Measurements | None) -> None:
    assert "not measured" in texts(plot.svg([compression(Target.OPENVINO_INT8, measured)]))


def test_a_models_name_is_no_markup() -> None:
    made = compression(Target.OPENVINO_INT8)
    named = replace(made.order.checkpoint, model="$a$<b>&")
    drawn = plot.svg([replace(made, order=replace(made.order, checkpoint=named))])
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


point = st.tuples(st.floats(0, 10), st.floats(0, 10))


@given(points=st.lists(point, min_size=1, max_size=12), better=st.sampled_from([-1, 1]))
def test_nothing_on_the_front_is_beaten_and_all_else_is(
    points: list[tuple[float, float]], better: int
) -> None:
    front = plot.pareto(points, better)

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and better * one[0] >= better * other[0] and one[1] <= other[1]

    assert front
    for each in points:
        assert (each in front) == (not any(beats(other, each) for other in points))
