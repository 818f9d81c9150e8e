"""What a row is known by: one hash however it is written, and another for every other row."""

import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_examples.row_hash import canonical, hashes_of, parsed, row_hash, spelled
from millrace_examples.rows import Unreadable

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.text(), VALUES, min_size=1, max_size=4)


# Of RFC 8785: the number samples of appendix B, and the sorting example of section 3.2.3.
@pytest.mark.parametrize(
    ("value", "written"),
    [
        (5e-324, "5e-324"),
        (-1.7976931348623157e308, "-1.7976931348623157e+308"),
        (9007199254740992, "9007199254740992"),
        (295147905179352830000, "295147905179352830000"),
        (9.999999999999997e22, "9.999999999999997e+22"),
        (1e23, "1e+23"),
        (0.000001, "0.000001"),
        (1e-7, "1e-7"),
        (333333333.3333332, "333333333.3333332"),
        (-0.0000033333333333333333, "-0.0000033333333333333333"),
        (1.0, "1"),
        (-0.0, "0"),
        (2**60, "1152921504606847000"),
        ({"b": [1, {}], "a": []}, '{"a":[],"b":[1,{}]}'),
        ("\u20ac$\u000f\nA'B\"\\", '"\u20ac$\\u000f\\nA\'B\\"\\\\"'),
        (
            {"\ufb33": 1, "\U0001f600": 2, "\r": 3, "1": 4},
            '{"\\r":3,"1":4,"\U0001f600":2,"\ufb33":1}',
        ),
    ],
)
def test_json_is_as_rfc_8785_writes_it(value: Any, written: str) -> None:
    assert canonical(value) == written


@given(ROWS)
def test_the_form_reads_back_and_does_not_depend_on_how_it_was_written(row: dict[str, Any]) -> None:
    once = canonical(row)
    assert canonical(json.loads(once)) == once
    reordered = dict(reversed(row.items()))
    for written in (json.dumps(reordered, indent=3), json.dumps(row, ensure_ascii=False)):
        assert row_hash(json.loads(written)) == row_hash(row)
    assert row_hash(orjson.loads(orjson.dumps(row))) == row_hash(row)


@given(ROWS, ROWS)
def test_other_rows_have_other_hashes(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = canonical(one) == canonical(other) or (
        isinstance(one.get("text"), str) and one.get("text") == other.get("text")
    )
    assert (row_hash(one) == row_hash(other)) == same


def test_a_text_is_known_by_its_bytes() -> None:
    text = "Grüße"
    expected = hashlib.sha256(text.encode()).digest()
    assert row_hash(text) == row_hash({"text": text, "source": "x"}) == expected
    assert row_hash({"text": 5}) == hashlib.sha256(b'{"text":5}').digest()
    row_hash("half a pair \ud800")


def test_nesting_has_no_limit() -> None:
    value: Any = []
    for _ in range(50_000):
        value = [value]
    assert len(canonical(value)) == 2 * 50_001


def test_hashes_are_spelled_and_read() -> None:
    hash = row_hash("a")
    assert parsed(spelled(hash)) == hash
    for wrong in ("", "sha256:12", spelled(hash)[7:], spelled(hash).upper(), spelled(hash) + "\n"):
        with pytest.raises(ValueError, match="64 hexadecimal"):
            parsed(wrong)


def test_every_container_knows_the_same_rows(tmp_path: Path) -> None:
    rows = [{"b": 1, "a": [2.5]}, {"text": "x"}]
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    array.write_text(json.dumps(rows, indent=2))
    expected = [row_hash(row) for row in rows]
    assert list(hashes_of(lines, "a.jsonl")) == list(hashes_of(array, "a.json")) == expected
    text = tmp_path / "a.txt"
    text.write_text("some\ntext\n")
    assert row_hash("some\ntext\n") in set(hashes_of(text, "a.txt"))
    lines.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(Unreadable, match="line 2"):
        list(hashes_of(lines, "a.jsonl"))
