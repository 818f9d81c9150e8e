"""Which windows calibrate."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_compress import tokenizer

from millrace_compressor.jobs import calibration
from millrace_compressor.jobs.calibration import GENERIC, OWN
from millrace_compressor.jobs.format import Calibration
from millrace_runtime.jobs import JobError

LENGTH = 8
UNUSED = Path("no model is needed")


def dataset(folder: Path, train: NDArray[np.uint16], heldout: NDArray[np.uint16]) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "train-00000.npy", train)
    np.save(folder / "heldout-00000.npy", heldout)
    return folder


def tokens(windows: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 500, windows * LENGTH).astype(np.uint16)


def test_the_same_data_and_seed_give_the_same_windows_byte_for_byte(tmp_path: Path) -> None:
    train = tokens(50)
    one = dataset(tmp_path / "one", train, tokens(2, seed=1))
    # The same rows in another order, another type, and cut into shards elsewhere.
    other = tmp_path / "other"
    dataset(other, np.roll(train, 7 * LENGTH)[: 20 * LENGTH], tokens(2, seed=1))
    np.save(other / "train-00001.npy", np.roll(train, 7 * LENGTH)[20 * LENGTH :].astype(np.uint32))
    wanted = Calibration(samples=10, seed=3)
    first = calibration.sample(one, UNUSED, wanted, LENGTH)
    again = calibration.sample(other, UNUSED, wanted, LENGTH)
    assert first.windows.tobytes() == again.windows.tobytes()
    assert first.record() == again.record()
    assert (first.windows.shape, first.windows.dtype) == ((10, LENGTH), np.int64)
    another = calibration.sample(one, UNUSED, Calibration(samples=10, seed=4), LENGTH)
    assert another.record()["digest"] != first.record()["digest"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(judging=st.sets(st.integers(0, 11), max_size=11), seed=st.integers(0, 2**63 - 1))
def test_no_window_that_judges_calibrates(tmp_path: Path, judging: set[int], seed: int) -> None:
    rows = tokens(12).reshape(12, LENGTH)
    heldout = np.concatenate([*rows[sorted(judging)], np.empty(0, np.uint16)]).astype(np.uint16)
    found = calibration.sample(
        dataset(tmp_path / "data", rows.reshape(-1), heldout),
        UNUSED,
        Calibration(samples=100, seed=seed),
        LENGTH,
    )
    expected = {tuple(row) for number, row in enumerate(rows.tolist()) if number not in judging}
    assert {tuple(row) for row in found.windows.tolist()} == expected
    assert found.excluded == len(judging)


def test_when_every_window_judges_there_is_nothing_to_calibrate_with(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", tokens(4), tokens(4))
    with pytest.raises(JobError, match="does not judge") as caught:
        calibration.sample(data, UNUSED, Calibration(), LENGTH)
    assert caught.value.reason == "CALIBRATION_DATA_MISSING"


def test_a_tuned_checkpoint_brings_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "calibration").mkdir()
    (tmp_path / "evaluation").mkdir()
    np.save(tmp_path / "calibration/train-00000.npy", tokens(3))
    np.save(tmp_path / "evaluation/heldout-00000.npy", tokens(1))
    found = calibration.sample(tmp_path, UNUSED, Calibration(), LENGTH)
    assert (found.source, len(found.windows), found.excluded, found.note) == (OWN, 2, 1, "")


def test_data_shorter_than_a_window_is_one_window(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", tokens(1), tokens(1, seed=1))
    assert calibration.sample(data, UNUSED, Calibration(), 100).windows.shape == (1, LENGTH)


def test_huge_data_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_LOOKED_AT", 5)
    data = dataset(tmp_path / "data", tokens(50), tokens(1, seed=1))
    assert len(calibration.sample(data, UNUSED, Calibration(), LENGTH).windows) == 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer().save_pretrained(folder)
    return folder


def test_generic_text_is_as_reproducible(tmp_path: Path, model: Path) -> None:
    wanted = Calibration(source=GENERIC, samples=6, seed=1)
    first, again = (calibration.sample(tmp_path, model, wanted, 32) for _ in range(2))
    assert first.windows.tobytes() == again.windows.tobytes()
    assert (first.source, first.windows.shape, first.note) == (GENERIC, (6, 32), "")


def test_without_own_data_it_is_generic_and_the_report_says_so(tmp_path: Path, model: Path) -> None:
    found = calibration.sample(tmp_path, model, Calibration(samples=2), 32)
    assert found.record()["source"] == GENERIC
    assert "generic text was used" in found.record()["note"]
    with pytest.raises(JobError) as caught:  # asked for by name, nothing else will do
        calibration.sample(tmp_path, model, Calibration(source=OWN), 32)
    assert caught.value.reason == "CALIBRATION_DATA_MISSING"
