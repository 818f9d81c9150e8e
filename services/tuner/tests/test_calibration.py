"""Rows of the training file that are kept with a checkpoint, for the compressor."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from millrace_tuner.jobs import calibration
from millrace_tuner.jobs.calibration import Ids, Rows

SEPARATOR = 0
ROW = st.lists(st.integers(1, 9), min_size=1, max_size=4)
ROWS = st.lists(ROW, max_size=12)


def ids(rows: list[list[int]]) -> list[Ids]:
    return [np.array(row, np.int32) for row in rows]


def parts(stream: Ids) -> list[list[int]]:
    """What lies between the separators."""
    found: list[list[int]] = [[]]
    for token in stream.tolist():
        if token == SEPARATOR:
            found.append([])
        else:
            found[-1].append(token)
    return found[:-1]


@given(training=ROWS, heldout=ROWS, seed=st.integers(-(2**70), 2**70))
def test_what_judges_never_calibrates_and_every_other_row_is_there_once(
    training: list[list[int]], heldout: list[list[int]], seed: int
) -> None:
    found = parts(calibration.stream(Rows(ids(training), ids(heldout)), seed, SEPARATOR))
    wanted = {tuple(row) for row in training} - {tuple(row) for row in heldout}
    assert sorted(map(tuple, found)) == sorted(wanted)


@given(training=ROWS, seed=st.integers(0, 5), limit=st.integers(0, 10))
def test_the_order_of_the_file_does_not_matter_and_the_limit_holds(
    training: list[list[int]], seed: int, limit: int
) -> None:
    first = calibration.stream(Rows(ids(training), []), seed, SEPARATOR, limit)
    again = calibration.stream(Rows(ids(training[::-1]), []), seed, SEPARATOR, limit)
    assert first.tobytes() == again.tobytes()
    assert len(first) <= limit


def test_another_seed_takes_others() -> None:
    rows = Rows(ids([[number] for number in range(1, 100)]), [])
    first, other = (calibration.stream(rows, seed, SEPARATOR, 20) for seed in (1, 2))
    assert first.tolist() != other.tolist()


def test_nothing_is_written_where_no_row_is_left(tmp_path: Path) -> None:
    same = ids([[1, 2]])
    write = calibration.write
    write(tmp_path, Rows(same, same), seed=0, separator_id=SEPARATOR, dtype=np.uint16)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, Rows(same, []), seed=0, separator_id=SEPARATOR, dtype=np.uint16)
    kept = np.load(tmp_path / "calibration/train-00000.npy", allow_pickle=False)
    assert (kept.tolist(), kept.dtype) == ([1, 2, SEPARATOR], np.uint16)
