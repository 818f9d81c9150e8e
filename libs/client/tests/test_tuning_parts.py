"""What watching a tuning job is made of: sparklines, pace, what is known, how it looks."""

import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from millrace_client.pace import Pace
from millrace_client.sparkline import sparkline
from millrace_client.tuning_feed import Away
from millrace_client.tuning_samples import Prompt, Sample, prompt_of, prompts_of, show_samples
from millrace_client.tuning_state import Tuning
from millrace_client.tuning_view import checkpoint_line, event_line, method_words, picture

TUNED = "ft:demo:default:docs:k3x9ab"


def job(status: str = "running", phase: str = "train", done: int = 0, **more: Any) -> Any:
    metrics = {"train_loss": 2.5, "learning_rate": 0.0002, "tokens_per_second": 5321.4}
    return {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "model": "demo",
        "status": status,
        "created_at": 1_700_000_000,
        "finished_at": None,
        "fine_tuned_model": None,
        "training_file": "file-1",
        "validation_file": None,
        "result_files": [],
        "hyperparameters": {"n_epochs": 3},
        "method": {"type": "dpo", "dpo": {"adapter": {"kind": "dora", "rank": 8}}},
        "progress": {"phase": phase, "completed": done, "total": 120, "metrics": metrics},
        "error": None,
        **more,
    }


def event(step: int, loss: float, at: int = 0, **more: Any) -> Any:
    return {
        "id": f"ftevent-{step:03}",
        "object": "fine_tuning.job.event",
        "created_at": 1_700_000_000 + at,
        "level": "info",
        "type": "metrics",
        "message": f"Step {step}/120: training loss={loss:.2f}",
        "data": {"step": float(step), "train_loss": loss, **more},
    }


CHECKPOINT = {
    "id": "ckpt-1",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1_700_000_000,
    "fine_tuned_model_checkpoint": f"{TUNED}:ckpt-step-40",
    "step_number": 40,
    "metrics": {"step": 40, "train_loss": 1.9, "valid_loss": 2.01},
}


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_sparkline_reaches_from_the_lowest_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 10) == "▁▂▃▄▅▆▇█"
    assert sparkline([4, 4, 1, 1], 2) == "█▁"
    assert sparkline([3, 3], 4) == "▅▅"
    assert sparkline([1, math.nan, 2, math.inf], 4) == "▁·█·"
    assert sparkline([], 4) == ""
    assert sparkline([math.nan], 4) == "·"


@given(st.lists(st.floats()), st.integers(1, 80))
def test_a_sparkline_is_never_wider_than_it_may_be(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) == min(len(values), width)
    assert set(drawn) <= set("▁▂▃▄▅▆▇█·")


@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=30))
def test_a_higher_bar_is_never_a_lower_value(values: list[float]) -> None:
    drawn = sparkline(values, len(values))
    for bar, value in zip(drawn, values, strict=True):
        for other_bar, other in zip(drawn, values, strict=True):
            assert bar <= other_bar or value >= other


def test_an_even_pace_is_told_exactly_and_counts_down() -> None:
    pace = Pace()
    assert pace.seconds_left(0, 100, 0.0) is None
    for step in range(11):
        pace.observe(step, step * 2.0)
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.seconds_left(10, 100, 20.0) == pytest.approx(180)
    assert pace.seconds_left(10, 100, 21.0) == pytest.approx(179)
    assert pace.seconds_left(100, 100, 20.0) == 0


def test_the_pace_follows_what_is_now() -> None:
    pace = Pace()
    for step in range(61):
        pace.observe(step, float(step))
    for index in range(1, 61):
        pace.observe(60 + index, 60 + index * 10.0)
    assert pace.steps_per_second == pytest.approx(0.1, rel=0.01)


def test_steps_that_are_done_again_and_another_clock_tell_nothing() -> None:
    pace = Pace()
    pace.observe(10, 0.0)
    pace.observe(20, 10.0)
    pace.observe(12, 500.0)
    pace.observe(22, 510.0)
    pace.change_clock()
    pace.observe(22, 5.0)
    pace.observe(32, 15.0)
    assert pace.steps_per_second == pytest.approx(1.0)


def test_a_step_that_is_told_again_and_again_counts_with_all_its_time() -> None:
    pace = Pace()
    for at in range(11):
        pace.observe(0, float(at))
    pace.observe(1, 11.0)
    assert pace.steps_per_second == pytest.approx(1 / 11)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e6)), max_size=40))
def test_the_time_left_is_never_below_nothing(moments: list[tuple[int, float]]) -> None:
    pace = Pace()
    for step, at in moments:
        pace.observe(step, at)
        left = pace.seconds_left(step, 50, at)
        assert left is None or (left >= 0 and math.isfinite(left))


@pytest.mark.parametrize(
    ("status", "phase", "stage"),
    [
        ("validating_files", "", "validating"),
        ("queued", "", "queued"),
        ("running", "prepare", "training"),
        ("running", "train", "training"),
        ("running", "rollout", "rollout"),
        ("succeeded", "rollout", "rollout"),
        ("failed", "train", "training"),
    ],
)
def test_stages(status: str, phase: str, stage: str) -> None:
    tuning = Tuning(Clock())
    tuning.take(job(status, phase))
    assert tuning.stage == stage


def test_the_past_is_paced_by_its_own_clock_and_the_present_by_ours() -> None:
    clock = Clock()
    tuning = Tuning(clock)
    for step in (10, 20, 30):
        tuning.take(event(step, 3.0, at=step))
    tuning.take(job(done=30))
    assert tuning.seconds_left(0) == pytest.approx(90)
    clock.seconds += 20
    tuning.take(job(done=50))
    assert tuning.seconds_left(0) == pytest.approx(70)
    tuning.take(job("queued", done=50))
    assert tuning.seconds_left(0) is None


def test_without_a_pace_the_services_own_estimate_is_told() -> None:
    tuning = Tuning(Clock())
    tuning.take(job(done=0, estimated_finish=1_700_000_500))
    assert tuning.seconds_left(1_700_000_400) == 100


def test_reading_examples_is_no_training() -> None:
    tuning = Tuning(Clock())
    tuning.take(job(phase="prepare", done=0))
    tuning.take(job(phase="prepare", done=100))
    tuning.take(job(done=1))
    assert tuning.seconds_left(0) is None
    tuning.take(job(phase="prepare", done=100))
    assert "epoch" not in drawn(picture(tuning, 0))


def test_a_checkpoints_event_is_no_second_point_of_the_curve() -> None:
    tuning = Tuning(Clock())
    tuning.take(event(40, 2.0))
    tuning.take({**event(40, 9.0, valid_loss=2.2), "type": "message"})
    tuning.take({**event(80, 1.5, valid_loss=2.1), "type": "message"})
    tuning.take({**event(120, 1.2, valid_loss=2.4), "type": "message"})
    assert tuning.values("train_loss") == [2.0, 1.5, 1.2]
    assert tuning.best("valid_loss") == (80, 2.1)
    assert tuning.newest("valid_loss") == 2.4
    tuning.take({**event(0, 0), "data": None, "message": "words"})
    assert tuning.message == "words"


def drawn(renderable: Any, width: int = 100) -> str:
    out = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    out.print(renderable)
    return out.export_text()


def a_tuning() -> Tuning:
    clock = Clock()
    tuning = Tuning(clock)
    for step in range(1, 61):
        tuning.take(event(step, 4.0 - step / 40, at=step))
    tuning.take({**event(40, 3.0, valid_loss=2.01), "type": "message"})
    tuning.checkpoints = [CHECKPOINT]
    tuning.take(job(done=60))
    clock.seconds += 10
    tuning.take(job(done=70))
    return tuning


def test_the_picture_has_everything() -> None:
    text = drawn(picture(a_tuning(), 1_700_000_075))
    for expected in (
        "ftjob-1  demo  dpo, dora rank 8  running",
        "✔ validating   ✔ queued   ▶ training   ○ rollout",
        "train 70/120 (58%)  epoch 1.8/3",
        "█",
        "2.5  from 3.975",
        "2.01, best 2.01 at step 40",
        "learning rate 0.0002 · 5,321 tokens/s",
        "1 min 15 s since it was made · about 50.0 s of training left",
        f"step 40  loss 1.9  validation 2.01  {TUNED}:ckpt-step-40",
    ):
        assert expected in text, text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_picture_keeps_within_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in drawn(picture(a_tuning(), 0), width).splitlines())


def test_the_picture_of_other_states() -> None:
    tuning = Tuning(Clock())
    assert "…" in drawn(picture(tuning, 0))
    tuning.take(Away("no answer from [here]"))
    assert "no answer from [here]" in drawn(picture(tuning, 0))
    tuning.take(job("queued", "", progress=None))
    assert "✔ validating   ▶ queued" in drawn(picture(tuning, 0))
    tuning.take(Away("no answer from [here]"))
    assert "waiting" in drawn(picture(tuning, 0))
    tuning.take(job("failed"))
    assert "✘ training" in drawn(picture(tuning, 0))
    tuning.take(job("succeeded", "train"))
    succeeded = drawn(picture(tuning, 0))
    assert "✔ training" in succeeded
    assert "rollout" not in succeeded, "what it made is not served"
    tuning.take(job("paused"))
    assert "‖ training" in drawn(picture(tuning, 0))


def test_rewards_are_drawn_too() -> None:
    tuning = a_tuning()
    tuning.take(event(61, 1.0, train_mean_reward=0.75))
    assert "mean reward" in drawn(picture(tuning, 0))


def test_many_checkpoints_are_not_all_shown() -> None:
    tuning = a_tuning()
    tuning.checkpoints = [{**CHECKPOINT, "step_number": step} for step in range(1, 11)]
    text = drawn(picture(tuning, 0))
    assert "(4 earlier)" in text
    assert "step 4 " not in text


def test_lines() -> None:
    line = event_line(event(10, 2.314, learning_rate=0.0002))
    assert line.endswith("Step 10/120: training loss=2.31  learning_rate=0.0002")
    warning = {**event(10, 2.0), "level": "warn", "data": None}
    assert " warn: Step" in event_line(warning)
    assert checkpoint_line(CHECKPOINT).endswith(
        f"checkpoint step=40 train_loss=1.9 valid_loss=2.01 model={TUNED}:ckpt-step-40"
    )
    assert method_words({"method": {"type": "supervised", "supervised": {}}}) == "supervised"
    assert method_words({}) == ""


USER = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "because"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, {**ANSWER, "weight": 1}]}, Prompt((USER,), wanted="because")),
        ({"messages": [USER], "reference": 3}, Prompt((USER,))),
        (
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
            Prompt((USER, ANSWER, USER), wanted="because"),
        ),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER]},
            Prompt((USER,), wanted="because"),
        ),
        ({"prompt": "why?", "chosen": "because"}, Prompt((USER,), wanted="because")),
        ({"prompt": [USER], "completion": [ANSWER]}, Prompt((USER,), wanted="because")),
        (
            {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "x"}]},
            Prompt((USER,), wanted="x"),
        ),
        (
            {"instruction": "why?", "input": "", "output": "because"},
            Prompt((USER,), wanted="because"),
        ),
        ({"text": "a b c d"}, Prompt(text="a b", wanted="c d")),
        ({"text": 7}, None),
        ({"messages": "why?"}, Prompt((USER,))),
        ({"messages": [7]}, None),
        ({"messages": []}, None),
        ({"other": 1}, None),
    ],
)
def test_what_a_row_asks(row: Any, expected: Prompt | None) -> None:
    assert prompt_of(row) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "input", "prompt", "text", "content", "role", "instruction", "from"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=5))
def test_no_file_makes_the_search_for_prompts_fail(rows: list[Any]) -> None:
    found = prompts_of(rows, 3)
    assert all(prompt.shown.strip() for prompt in found)
    assert len(found) <= 3


def test_prompts_are_different_ones() -> None:
    rows = [{"prompt": word} for word in ("a", "a", "b", " ", "c", "d")]
    assert [prompt.shown for prompt in prompts_of(rows, 3)] == ["a", "b", "c"]


def test_samples_side_by_side_and_in_lines() -> None:
    done = job("succeeded", fine_tuned_model=TUNED)
    samples = [Sample(Prompt((USER,), wanted="because"), "dunno [b]", "because\nof it")]
    out = Console(record=True, width=120, file=io.StringIO(), force_terminal=True)
    show_samples(out, done, samples)
    table = out.export_text()
    for expected in ("before", "demo", "after", TUNED, "in the file", "dunno [b]", "of it"):
        assert expected in table, table
    piped = Console(file=io.StringIO(), width=200)
    show_samples(piped, done, samples)
    assert piped.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        'sample 1 prompt: "why?"',
        'sample 1 before demo: "dunno [b]"',
        f'sample 1 after {TUNED}: "because\\nof it"',
        'sample 1 wanted: "because"',
    ]
