"""What a search says of itself: a winner, or plainly none, with figures and how sure they are."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_builders import WISH, looks

from millrace_registry.tuning import plot
from millrace_registry.tuning.decision import decide
from millrace_registry.tuning.report import gain, report_of
from millrace_registry.tuning.resource import (
    CANCELLED,
    Failure,
    Progress,
    Result,
    ServingTuning,
    State,
)
from millrace_registry.tuning.trial import Trial

RATES = st.floats(0.1, 1000)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def tuning(trials: list[Trial], **changes: object) -> ServingTuning:
    made = ServingTuning(
        "acme", "tuning-1", "deployment-1", "a <model>", WISH, NOW, trials=tuple(trials)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ended(*rates: float, is_written: bool = True, **changes: object) -> ServingTuning:
    """A search of these looks, decided as the job decides."""
    trials = looks(*rates)
    best, confirmation = (rates[2], rates[4]) if len(rates) == 5 else (0.0, 0.0)
    found = decide(rates[0], rates[3], best, confirmation)
    result = Result(2 if found.is_better else 0, found.is_better, found.reason, found.noise)
    result = replace(result, is_written=is_written and found.is_better)
    return tuning(trials, state=State.SUCCEEDED, result=result, **changes)


def test_a_winner_is_named_with_its_settings_and_its_gain() -> None:
    report = report_of(ended(5.0, 4.0, 9.0, 5.2, 8.8))
    for words in (
        "Trial 2 (instances 2, batch 32, threads 1, cache GiB 1) answers 9 and 8.8 requests/s",
        "The present settings answered 5 and 5.2 requests/s",
        "Every look at it was above 5.46, as it had to be.",
        "95% interval",
        "Written to deployment-1.",
    ):
        assert words in report.conclusion
    compared = report.comparison
    assert compared is not None
    assert (compared.present, compared.best, compared.best_trial) == ((5.0, 5.2), (9.0, 8.8), 2)
    assert compared.gain is not None
    assert compared.gain.low is not None
    assert 0.4 < compared.gain.low < compared.gain.mean < 1
    figures = {figure.name: figure for figure in report.figures}
    assert {figure.scenario for figure in report.figures} == {"SINGLE_STREAM", "OFFLINE", "SERVER"}
    server = figures["server_requests_per_second"]
    assert (server.present, server.best, server.unit) == (5.0, 9.0, "requests_per_second")


def test_a_noisy_machine_has_no_winner_and_it_is_said_plainly() -> None:
    report = report_of(ended(5.0, 4.0, 6.4, 6.2, 5.9))
    assert report.conclusion == (
        "No winner: the present settings stay. The present settings answered 5 and 6.2 requests/s "
        "within the target: 19% apart, so on this machine 19% more or less says nothing. The best "
        "candidate, trial 2, answered 6.4 and 5.9; every look at it had to be above 7.4. On "
        "average that is +10% (95% interval -33% to +81%)."
    )


def test_where_nothing_was_better_at_first_there_is_no_candidate_to_name() -> None:
    report = report_of(ended(5.0, 4.0, 4.5, 4.9))
    assert report.comparison is not None
    assert (report.comparison.best_trial, report.comparison.gain) == (None, None)
    assert report.conclusion.startswith("No winner: the present settings stay.")
    assert "None of 2 candidates answered more" in report.conclusion
    assert "2% apart, so on this machine 5% more or less says nothing" in report.conclusion


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_written": False}, "settings were changed meanwhile"),
        ({"is_written": False, "wish": replace(WISH, is_dry_run=True)}, "a dry run"),
    ],
)
def test_a_winner_that_is_not_written_says_why(changes: dict[str, object], words: str) -> None:
    assert words in report_of(ended(5.0, 4.0, 9.0, 5.2, 8.8, **changes)).conclusion  # type: ignore[arg-type]


def test_settings_that_alone_meet_the_target_win_without_a_gain() -> None:
    report = report_of(ended(0.0, 0.0, 3.0, 0.0, 2.0))
    assert "do not meet the target" in report.conclusion
    assert report.comparison is not None
    assert report.comparison.gain is None


def test_one_that_has_not_succeeded_says_how_it_stands() -> None:
    running = tuning(looks(5.0), state=State.RUNNING, progress=Progress("offline", 1, 5))
    assert "1 of at most 5 looks (offline)" in report_of(running).conclusion
    assert report_of(running).comparison is not None
    queued = tuning([], progress=Progress("waits for its turn", 0, 5))
    assert report_of(queued).comparison is None
    failed = tuning([], state=State.FAILED, failure=Failure("TUNING_FAILED", "signal 9"))
    assert "signal 9" in report_of(failed).conclusion
    cancelled = tuning([], state=State.CANCELLED, failure=CANCELLED)
    assert "nothing was changed" in report_of(cancelled).conclusion


@given(RATES, RATES, RATES, RATES, st.floats(0.01, 100))
def test_the_interval_holds_the_gain_and_does_not_depend_on_the_unit(
    present: float, control: float, best: float, confirmation: float, unit: float
) -> None:
    found = gain([present, control], [best, confirmation])
    other = gain([present * unit, control * unit], [best * unit, confirmation * unit])
    assert found is not None
    assert other is not None
    assert found.low is not None
    assert found.high is not None
    assert other.mean == pytest.approx(found.mean, abs=1e-6, rel=1e-6)
    assert found.low < found.mean < found.high
    mean = math.sqrt(best * confirmation / (present * control)) - 1
    assert found.mean == pytest.approx(mean, abs=1e-6, rel=1e-6)


def test_the_plot_draws_what_was_measured_the_noise_and_the_winner() -> None:
    drawn = plot.svg(report_of(ended(5.0, 4.0, 9.0, 5.2, 8.8)))
    space = "{http://www.w3.org/2000/svg}"
    svg = ElementTree.fromstring(drawn)
    marks = svg.findall(f"{space}circle")
    assert [mark.get("r") for mark in marks] == ["5", "5", "7", "5", "5"]
    assert [each.get("class") for each in svg.findall(f"{space}rect")] == [None, "noise"]
    assert "a <model>" in "".join(svg.itertext())
    assert "Trial 2" in (svg.findtext(f"{space}desc") or "")


def test_a_plot_of_nothing_is_still_one() -> None:
    svg = ElementTree.fromstring(plot.svg(report_of(tuning([]))))
    assert "(no winner)" in "".join(svg.itertext())
