import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from millrace_examples import rows
from millrace_examples.report import MAXIMUM_PROBLEMS, Report, check
from millrace_examples.rows import MAXIMUM_LINE_BYTES, TEXT_PIECE_BYTES, Container, rows_of

USER = {"role": "user", "content": "Question?"}
ANSWER = {"role": "assistant", "content": "Answer."}
CHAT = {"messages": [USER, ANSWER]}


def lines_of(*examples: Any) -> bytes:
    return b"\n".join(json.dumps(example).encode() for example in examples) + b"\n"


def checked(tmp_path: Path, content: bytes, filename: str = "train.jsonl") -> Report:
    path = tmp_path / "file"
    path.write_bytes(content)
    return check(path, filename)


def problems(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems]


def test_says_what_a_file_holds(tmp_path: Path) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "ä" * 100}]}
    report = checked(tmp_path, lines_of(*[CHAT] * 9, long))
    assert report == Report(
        format="openai_chat",
        kind="conversation",
        examples=10,
        messages=20,
        characters=9 * 16 + 109,
        estimated_tokens=9 * (4 + 8) + (53 + 8),  # 16 and 209 bytes in 4s, and 4 a message
        longest_line=10,
        longest_tokens=61,
    )
    assert report.is_valid


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    report = checked(tmp_path, b"\xef\xbb\xbf" + lines_of(CHAT).replace(b"\n", b"\n\n") * 10)
    assert report.is_valid
    assert (report.examples, report.longest_line) == (10, 1)


def test_too_few_examples_is_a_problem_of_the_file(tmp_path: Path) -> None:
    expected = ["file: has 9 examples; fine-tuning needs at least 10"]
    assert problems(checked(tmp_path, lines_of(*[CHAT] * 9))) == expected
    assert problems(checked(tmp_path, b"\n \n")) == [
        "file: has 0 examples; fine-tuning needs at least 10"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"messages": [', "line 2: is not JSON: Expecting value (character 15)"),
        (b"\xff{}", "line 2: is not UTF-8 (byte 0)"),
        (b'"x"', "line 2: must be a JSON object, not a string"),
        (b'{"messages": NaN}', "line 2: is not JSON: NaN is no number of JSON"),
        (b"[" * 100_000, "line 2: is not JSON: maximum recursion depth exceeded"),
        (b"1" * 5000, "line 2: is not JSON: Exceeds the limit"),
        (b"{" + b" " * MAXIMUM_LINE_BYTES, f"line 2: is longer than {MAXIMUM_LINE_BYTES} bytes"),
        (b"{}", "line 2: messages: must be a non-empty list"),
        (b'{"text": "x"}', "line 2: holds plain text, but the file began with chat conversations"),
        (
            lines_of({"messages": [USER]}).strip(),
            'line 2: messages[0].role: the last message must be the assistant\'s, not "user"',
        ),
    ],
)
def test_names_the_line(tmp_path: Path, line: bytes, expected: str) -> None:
    content = lines_of(CHAT) + line + b"\n" + lines_of(*[CHAT] * 8)
    found = problems(checked(tmp_path, content))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_lines_that_are_no_objects_have_no_format(tmp_path: Path) -> None:
    report = checked(tmp_path, b"[1, {}]\n[2\n")
    assert problems(report) == [
        "line 1: must be a JSON object, not a list; write one object a line (jq -c '.[]' FILE)",
        "line 2: is not JSON: Expecting ',' delimiter (character 3)"
        "; write one object a line (jq -c '.[]' FILE)",
    ]
    assert report.format == ""


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects_is_read_one_by_one(tmp_path: Path, indent: int | None) -> None:
    long = {"messages": [USER, {"role": "assistant", "content": "ä€" * 300_000}]}
    content = json.dumps([CHAT] * 9 + [long], indent=indent, ensure_ascii=False).encode()
    report = checked(tmp_path, b"\xef\xbb\xbf" + content + b"\n", "train.json")
    assert problems(report) == []
    assert (report.format, report.examples) == ("openai_chat", 10)
    assert report.longest_line == (1 if indent is None else 2 + 9 * 12)
    assert report.characters == 9 * 16 + 9 + 600_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{}\n{"a": 1}]', 'line 2: is not JSON: "," should stand before "{"'),
        (b"[{},\n]", "line 2: is not JSON: Expecting value"),
        (b"[{},\n1]", "line 2: must be a JSON object, not a number"),
        (b"[{},", "line 1: is not JSON: Expecting value"),
        (b"[{}", 'line 1: is not JSON: "," should stand before the end of the file'),
        (b"[{}]\n{}", "line 2: follows the end of the array"),
        (b'[{"a": NaN}]', "line 1: is not JSON: NaN is no number of JSON"),
        (b'[{"a": "\xff"}]', "line 1: or one after it is not UTF-8"),
        (b'[{"a": "' + b"x" * 5 * 1024 * 1024, "line 1: is longer than 4194304 characters, or is"),
    ],
)
def test_a_broken_array_names_its_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    found = [f"line {row.line}: {row.problem}" for row in rows_of(path, Container.ARRAY)]
    assert found[-1].startswith(expected)


def test_a_first_row_of_no_format_ends_the_check(tmp_path: Path) -> None:
    report = checked(tmp_path, lines_of({"question": "x"}, *[CHAT] * 20))
    assert len(report.problems) == 1
    assert problems(report)[0].startswith("line 1: is in no known format; ")


def test_stops_after_so_many_problems(tmp_path: Path) -> None:
    report = checked(tmp_path, lines_of(CHAT) + b"{}\n" * 1000)
    assert len(report.problems) == MAXIMUM_PROBLEMS
    assert report.examples == MAXIMUM_PROBLEMS + 1


def test_the_rest_of_a_file_tells_prompts_from_unfinished_conversations(tmp_path: Path) -> None:
    unfinished = {"messages": [USER]}
    assert checked(tmp_path, lines_of(*[unfinished] * 10)).format == "openai_reinforcement"
    mixed = checked(tmp_path, lines_of(unfinished, *[CHAT] * 9))
    assert mixed.format == "openai_chat"
    assert problems(mixed) == [
        'line 1: messages[0].role: the last message must be the assistant\'s, not "user"'
    ]


def test_fields_without_a_use_are_reported_or_refused(tmp_path: Path) -> None:
    alpaca = {"instruction": "x", "output": "y", "text": "z", "id": 1, "topic": None}
    assert checked(tmp_path, lines_of(*[alpaca] * 10)).unused_fields == ("text",)
    refused = checked(tmp_path, lines_of(*[{**CHAT, "topic": "z"}] * 10))
    assert "topic: is not a field of an example" in problems(refused)[0]


def test_a_text_file_is_told_by_its_name_and_first_line(tmp_path: Path) -> None:
    report = checked(tmp_path, b"Es war\n\neinmal.", "tale.txt")
    assert (report.format, report.kind, report.examples) == ("text", "text", 1)
    assert report.is_valid
    assert checked(tmp_path, lines_of(*[CHAT] * 10), "chat.txt").format == "openai_chat"
    bad = checked(tmp_path, b"fine\nnot \xff fine\n", "tale.txt")
    assert problems(bad) == ["file: line 2 is not UTF-8"]
    cut = checked(tmp_path, "ä".encode()[:1], "tale.txt")
    assert problems(cut) == ["file: line 1 is not UTF-8"]


def test_the_pieces_of_a_text_make_it_up_again(tmp_path: Path) -> None:
    paragraph = "Zwölf Boxkämpfer. " * 200
    text = "\n\n".join([paragraph] * 60) + "ö" * (3 * TEXT_PIECE_BYTES) + "\nEnd"
    path = tmp_path / "file"
    path.write_text(text)
    pieces = list(rows_of(path, Container.TEXT))
    assert "".join(piece.value["text"] for piece in pieces) == text
    assert all(len(p.value["text"].encode()) <= 3 * TEXT_PIECE_BYTES for p in pieces)
    lines = text.split("\n")
    for piece in pieces[:3]:
        assert piece.value["text"].startswith(lines[piece.line - 1] or "\n")


@pytest.mark.parametrize("filename", ["train.jsonl", "tale.txt"])
def test_a_file_without_newlines_costs_bounded_memory(tmp_path: Path, filename: str) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        for _ in range(64):
            stream.write(b"x" * 1024 * 1024)
    tracemalloc.start()
    report = check(path, filename)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MAXIMUM_LINE_BYTES
    assert report.is_valid == (filename == "tale.txt")


def parquet_of(tmp_path: Path, examples: list[dict[str, Any]], **options: Any) -> bytes:
    path = tmp_path / "made.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(examples), path, **options)
    return path.read_bytes()


def test_parquet_is_told_by_its_bytes(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tooled = [USER, {"role": "assistant", "tool_calls": [call]}]
    examples = [CHAT] * 99 + [{"messages": tooled, "tools": '[{"name": "f"}]'}]
    report = checked(tmp_path, parquet_of(tmp_path, examples), "train")
    assert problems(report) == []
    assert (report.format, report.examples) == ("openai_chat", 100)


def test_mistakes_in_parquet_name_their_row(tmp_path: Path) -> None:
    examples = [{"text": "x", "image": b"y"}, {"text": "", "image": None}]
    found = problems(checked(tmp_path, parquet_of(tmp_path, examples)))
    assert found == [
        "line 1: image: is a bytes, which JSON does not have",
        "line 2: text: must not be empty",
    ]


def test_damaged_parquet_is_a_problem_of_the_file(tmp_path: Path) -> None:
    found = problems(checked(tmp_path, b"PAR1" + b"x" * 100 + b"PAR1"))
    assert len(found) == 1
    assert found[0].startswith("file: is parquet that cannot be read: ")


def test_parquet_in_large_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAXIMUM_GROUP_BYTES", 10)
    found = problems(checked(tmp_path, parquet_of(tmp_path, [{"text": "x" * 100}])))
    assert found == ["file: has a row group of more than 10 bytes; write it with smaller ones"]
