import pytest

from millrace_client import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (0.00085, "850 µs"),
        (0.0123, "12 ms"),
        (3.42, "3.4 s"),
        (59.96, "60.0 s"),
        (125, "2 min 05 s"),
        (11_045, "3 h 04 min"),
    ],
)
def test_duration(seconds: float | None, expected: str):
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (5_812_345, "5.8 MB"), (3e15, "3000.0 TB")],
)
def test_size(size_bytes: float | None, expected: str):
    assert text.size(size_bytes) == expected


def test_progress():
    assert (
        text.progress({"phase": "train", "completed": 120, "total": 400}) == "train 120/400 (30%)"
    )
    assert text.progress({"phase": "read", "completed": 7, "total": 0}) == "read 7"
    assert text.progress(None) == "-"


def test_number():
    assert [text.number(n) for n in (None, 3, 1234567, 2.34567, 1234.5)] == [
        "-",
        "3",
        "1,234,567",
        "2.35",
        "1,234",
    ]


def test_ago():
    assert text.ago(100, now=225) == "2 min 05 s ago"
    assert text.ago(None) == "-"


def test_bar():
    assert [text.bar(n, 4, width=4) for n in (0, 1, 4)] == ["────", "━───", "━━━━"]
    assert text.bar(0, 0, width=2) == "──"
