import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_compressor import gate
from millrace_compressor.domain import GatePolicy, Measurements

GOOD = Measurements(
    original_perplexity=10.0,
    artifact_perplexity=10.1,
    top1_agreement=0.98,
    original_size_bytes=400,
    artifact_size_bytes=100,
    first_token_seconds=0.01,
    token_seconds=0.002,
)
STRICT = GatePolicy(
    max_perplexity_increase=0.02,
    min_top1_agreement=0.9,
    max_size_ratio=0.5,
    max_latency_seconds=0.1,
)
JUDGED = (
    "original_perplexity",
    "artifact_perplexity",
    "top1_agreement",
    "first_token_seconds",
    "token_seconds",
)
positive = st.floats(min_value=1e-3, max_value=1e6)


def test_what_keeps_every_limit_passes() -> None:
    assert gate.decide(GOOD, STRICT).passed
    assert gate.decide(GOOD, STRICT).reasons == ()


def test_a_policy_without_limits_judges_nothing() -> None:
    assert gate.decide(Measurements(), GatePolicy()).passed


def test_the_reason_has_the_figures() -> None:
    verdict = gate.decide(replace(GOOD, artifact_perplexity=11.0), STRICT)
    assert not verdict.passed
    assert verdict.reasons == ("perplexity increase is 0.1, more than 0.02",)


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_judged_must_be_measured(name: str, value: float | None) -> None:
    verdict = gate.decide(replace(GOOD, **{name: value}), STRICT)
    assert not verdict.passed
    assert "was not measured" in verdict.reasons[0]


@pytest.mark.parametrize("name", ["original_size_bytes", "artifact_size_bytes"])
def test_a_size_of_nothing_is_no_measurement(name: str) -> None:
    assert not gate.decide(replace(GOOD, **{name: 0}), STRICT).passed


@given(original=positive, artifact=positive, worse=st.floats(1.0, 10.0), limit=st.floats(0, 1))
def test_worse_never_passes_where_better_fails(
    original: float, artifact: float, worse: float, limit: float
) -> None:
    policy = GatePolicy(max_perplexity_increase=limit)
    better = Measurements(original_perplexity=original, artifact_perplexity=artifact)
    worsened = replace(better, artifact_perplexity=artifact * worse)
    if gate.decide(worsened, policy).passed:
        assert gate.decide(better, policy).passed
