"""What is measured of an artifact beside its original."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace_compressor.jobs import evaluate, report
from millrace_compressor.jobs.format import Logits, Tokens

WINDOWS: Tokens = np.arange(24, dtype=np.int64).reshape(2, 12)
LATENCY = {"load_seconds": 0.5, "first_token_seconds": 0.1, "token_seconds": 0.02}


class Slow:
    """A model that says how fast it is, alone."""

    dtype = "float32"

    def logits(self, ids: Tokens) -> Logits:
        raise AssertionError("speed needs no logits")

    def answer(
        self, prompts: Sequence[Sequence[int]], tokens: int, stops: Collection[int]
    ) -> list[list[int]]:
        raise AssertionError("speed needs no answers")

    def latency(self, prompt: Tokens) -> dict[str, Any]:
        return dict(LATENCY)


class Together(Slow):
    """One that answers several prompts at the same time too."""

    load_seconds = 0.5

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def load(self, prompts: Tokens) -> dict[str, Any]:
        self.asked.append(prompts.shape)
        return evaluate.load_measurement(len(prompts), 0.2, 0.05, 2.0)


def test_one_stream_is_what_latency_found_and_sixteen_are_asked_for() -> None:
    model = Together()
    one, many = evaluate.loads(model, WINDOWS, LATENCY)
    seconds = 0.1 + 0.02 * (evaluate.LOAD_TOKENS - 1)
    assert one["tokens_per_second"] == pytest.approx(evaluate.LOAD_TOKENS / seconds)
    assert (many["streams"], many["tokens_per_second"]) == (16, 16 * evaluate.LOAD_TOKENS / 2.0)
    assert model.asked == [(16, 12)]


def test_what_cannot_answer_several_is_measured_alone() -> None:
    assert [load["streams"] for load in evaluate.loads(Slow(), WINDOWS, LATENCY)] == [1]
    unmeasured = {**LATENCY, "token_seconds": None}
    assert evaluate.loads(Slow(), WINDOWS, unmeasured) == []


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which originals were loaded."""
    loaded: list[Path] = []

    def load(model: Path) -> Together:
        loaded.append(model)
        return Together()

    monkeypatch.setattr(report.plain, "Artifact", load)
    return loaded


def original(folder: Path, shape: str = "a", threads: int = 1) -> dict[str, Any]:
    return report.original_speed(
        Path("model"), WINDOWS, shape=shape, threads=threads, folder=folder
    )


def test_an_original_is_measured_once(tmp_path: Path, opened: list[Path]) -> None:
    first = original(tmp_path / "kept")
    assert original(tmp_path / "kept") == first
    assert len(opened) == 1
    assert first["original_load_seconds"] == 0.5
    assert [load["streams"] for load in first["original_loads"]] == [1, 16]


@pytest.mark.parametrize("change", [{"shape": "b"}, {"threads": 2}])
def test_another_shape_or_another_machine_is_measured_anew(
    tmp_path: Path, opened: list[Path], change: dict[str, Any]
) -> None:
    original(tmp_path)
    original(tmp_path, **change)
    assert len(opened) == 2


def test_what_was_kept_in_part_is_measured_anew(tmp_path: Path, opened: list[Path]) -> None:
    whole = original(tmp_path)
    kept = next(tmp_path.glob("*.json"))
    kept.write_text(json.dumps(whole)[:-5])
    assert original(tmp_path)["original_loads"] == whole["original_loads"]
    assert len(opened) == 2


def test_only_the_newest_originals_are_kept(
    tmp_path: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_KEPT_ORIGINALS", 2)
    for number in range(4):
        original(tmp_path, shape=str(number))
    assert len(list(tmp_path.iterdir())) == 2


def measured_memory(use: Callable[[], object]) -> int:
    memory = evaluate.Memory()
    kept = use()
    peak = memory.peak_bytes()
    del kept
    if peak is None:
        pytest.skip("this kernel does not say how much memory is in use")
    return peak


def test_memory_is_what_was_in_use_at_once() -> None:
    large = 64 << 20
    assert measured_memory(lambda: np.ones(large, np.uint8)) > 0.9 * large
    assert measured_memory(lambda: None) < 0.5 * large
