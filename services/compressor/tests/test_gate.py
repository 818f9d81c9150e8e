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
SCORED = replace(GOOD, task={"original_score": 0.5, "artifact_score": 0.48})
positive = st.floats(min_value=1e-3, max_value=1e6)


def test_a_search_that_found_nothing_says_how_near_it_came() -> None:
    unmet = {"trials": [], "unmet": ["nothing tried is small enough"]}
    found = replace(GOOD, search=unmet)
    assert gate.decide(found, STRICT).passed, "the gate judges, and not the search"
    refused = gate.decide(found, replace(STRICT, max_size_bytes=10))
    assert refused.reasons[1:] == ("nothing tried is small enough",)


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


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (GatePolicy(max_task_score_decrease=0.02), ""),  # one answer of fifty, to the bit
        (GatePolicy(max_task_score_decrease=0.01), "task score decrease is 0.02, more than 0.01"),
        (GatePolicy(min_task_score=0.48), ""),
        (GatePolicy(min_task_score=0.5), "task score is 0.48, less than 0.5"),
    ],
)
def test_a_task_is_judged_beside_the_original_and_alone(policy: GatePolicy, reason: str) -> None:
    verdict = gate.decide(SCORED, policy)
    assert verdict.reasons == ((reason,) if reason else ())
    better = replace(SCORED, task={"original_score": 0.4, "artifact_score": 0.6})
    assert gate.decide(better, policy).passed


@pytest.mark.parametrize(
    "task",
    [None, {}, {"original_score": math.nan, "artifact_score": None}, {"original_score": 0.5}],
)
@pytest.mark.parametrize("name", ["max_task_score_decrease", "min_task_score"])
def test_a_task_that_nobody_measured_does_not_pass(
    task: dict[str, float | None] | None, name: str
) -> None:
    for limit in (0.0, 1.0):
        verdict = gate.decide(replace(SCORED, task=task), GatePolicy(**{name: limit}))
        assert "was not measured" in verdict.reasons[0]


@given(original=positive, artifact=positive, worse=st.floats(1.0, 10.0), limit=st.floats(0, 1))
def test_worse_never_passes_where_better_fails(
    original: float, artifact: float, worse: float, limit: float
) -> None:
    policy = GatePolicy(max_perplexity_increase=limit)
    better = Measurements(original_perplexity=original, artifact_perplexity=artifact)
    worsened = replace(better, artifact_perplexity=artifact * worse)
    if gate.decide(worsened, policy).passed:
        assert gate.decide(better, policy).passed


measurement = st.none() | st.floats() | st.floats(0, 100)
limits = st.none() | st.floats(0, 10)
sizes = st.integers(-1, 1000)
MEASUREMENTS = st.builds(
    Measurements,
    original_perplexity=measurement,
    artifact_perplexity=measurement,
    top1_agreement=measurement,
    original_size_bytes=sizes,
    artifact_size_bytes=sizes,
    first_token_seconds=measurement,
    token_seconds=measurement,
    task=st.none()
    | st.fixed_dictionaries({"original_score": measurement, "artifact_score": measurement}),
)
POLICIES = st.builds(
    GatePolicy,
    max_perplexity_increase=limits,
    min_top1_agreement=limits,
    max_size_ratio=limits,
    max_latency_seconds=limits,
    max_size_bytes=st.none() | st.integers(1, 1000),
    max_task_score_decrease=limits,
    min_task_score=limits,
)
RULES = (
    "max_perplexity_increase",
    "min_top1_agreement",
    "max_size_ratio",
    "max_latency_seconds",
    "max_size_bytes",
    "max_task_score_decrease",
    "min_task_score",
)
JUDGED_BY = {
    "max_perplexity_increase": ("original_perplexity", "artifact_perplexity"),
    "min_top1_agreement": ("top1_agreement",),
    "max_latency_seconds": ("first_token_seconds", "token_seconds"),
}


@given(measured=MEASUREMENTS, policy=POLICIES)
def test_the_same_question_has_the_same_answer_and_a_refusal_its_reason(
    measured: Measurements, policy: GatePolicy
) -> None:
    before = repr((measured, policy))
    verdict = gate.decide(measured, policy)
    assert verdict == gate.decide(replace(measured), replace(policy))
    assert repr((measured, policy)) == before
    assert verdict.passed == (not verdict.reasons)


@given(measured=MEASUREMENTS, policy=POLICIES, rule=st.sampled_from(RULES))
def test_a_rule_less_never_rejects_what_passed(
    measured: Measurements, policy: GatePolicy, rule: str
) -> None:
    milder = replace(policy, **{rule: None})
    strict, mild = gate.decide(measured, policy), gate.decide(measured, milder)
    assert set(mild.reasons) <= set(strict.reasons)
    assert mild.passed or not strict.passed


@given(
    measured=MEASUREMENTS,
    policy=POLICIES,
    judged=st.sampled_from([(rule, name) for rule, names in JUDGED_BY.items() for name in names]),
    limit=st.floats(0, 10),
)
def test_no_measurement_means_no_pass(
    measured: Measurements, policy: GatePolicy, judged: tuple[str, str], limit: float
) -> None:
    rule, name = judged
    asked = replace(policy, **{rule: limit})
    for missing in (None, math.nan, math.inf):
        assert not gate.decide(replace(measured, **{name: missing}), asked).passed


@given(
    measured=MEASUREMENTS,
    policy=POLICIES,
    name=st.sampled_from(["artifact_perplexity", "first_token_seconds", "token_seconds"]),
    more=st.floats(0, 100),
)
def test_more_of_what_is_bad_never_passes_where_less_fails(
    measured: Measurements, policy: GatePolicy, name: str, more: float
) -> None:
    value = getattr(measured, name)
    if value is not None and gate.decide(replace(measured, **{name: value + more}), policy).passed:
        assert gate.decide(measured, policy).passed
