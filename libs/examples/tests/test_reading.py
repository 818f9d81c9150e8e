import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from millrace_examples.kinds import (
    Classified,
    Conversation,
    Example,
    Judged,
    Pair,
    Preference,
    Task,
    Text,
)
from millrace_examples.reading import ExamplesError, read

USER = {"role": "user", "content": "Question?"}
ANSWER = {"role": "assistant", "content": "Answer."}
WORSE = {"role": "assistant", "content": "No."}
PREFERENCE = {"prompt": [USER, WORSE, USER], "chosen": "Answer.", "rejected": "No."}
PAIR = {"prompt": "Question?", "completion": "Answer."}


def written(path: Path, *examples: Any) -> tuple[Path, str]:
    content = b"\n".join(
        example if isinstance(example, bytes) else json.dumps(example).encode()
        for example in examples
    )
    path.write_bytes(content)
    return path, f"sha256:{hashlib.sha256(content).hexdigest()}"


def refusal(tmp_path: Path, wanted: type[Any], *examples: Any, method: str = "") -> ExamplesError:
    path, digest = written(tmp_path / "file", *examples)
    with pytest.raises(ExamplesError) as caught:
        read(path, digest, wanted, "training file", method)
    return caught.value


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "file", b"", {"text": "a"}, b" ", {"text": "b"})
    assert read(path, digest, Text, "training file") == [Text(2, "a"), Text(4, "b")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            PREFERENCE,
            [Conversation(1, (USER, {**WORSE, "weight": 0}, USER, ANSWER))],
        ),
        (
            PREFERENCE,
            [
                Judged(1, (USER, WORSE, USER), (ANSWER,), is_good=True),
                Judged(1, (USER, WORSE, USER), (WORSE,), is_good=False),
            ],
        ),
        (PAIR, [Pair(1, "Question?", "Answer.")]),
        (PAIR, [Task(1, (USER,), (), {"completion": "Answer."})]),
        ({"text": "x", "label": 1}, [Text(1, "x")]),
        ({"text": "x", "label": 1}, [Classified(1, "x", (), 1)]),
    ],
)
def test_reads_a_row_as_what_a_method_needs(
    tmp_path: Path, row: Any, expected: list[Example]
) -> None:
    path, digest = written(tmp_path / "file", row)
    wanted: Any = type(expected[0])
    assert read(path, digest, wanted, "training file") == expected


def test_a_file_without_a_name_is_text_where_text_is_wanted(tmp_path: Path) -> None:
    path, digest = written(tmp_path / "file", b"Once", b"", b"upon a time")
    assert read(path, digest, Text, "training file") == [Text(1, "Once\n\nupon a time")]
    error = refusal(tmp_path, Conversation, b"Once")
    assert str(error).startswith("training file, line 1: is not JSON: ")


def test_a_method_that_needs_another_kind_says_which(tmp_path: Path) -> None:
    error = refusal(tmp_path, Preference, {"messages": [USER, ANSWER]}, method="dpo")
    assert error.reason == "WRONG_FORMAT"
    assert str(error).startswith(
        "method dpo needs preference pairs; the training file holds chat conversations: "
        'write each line as {"input": '
    )
    assert refusal(tmp_path, Conversation, {"text": "x"}).reason == "WRONG_FORMAT"


def test_a_conversation_of_many_turns_is_no_pair(tmp_path: Path) -> None:
    error = refusal(tmp_path, Pair, {"messages": [USER, WORSE, USER, ANSWER]})
    assert str(error) == (
        "training file, line 1: cannot be read as one of pairs of texts; "
        "correct the line and upload again"
    )


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"messages": [USER]}, "training file, line 2: messages[0].role: the last message must be"),
        (b"{", "training file, line 2: is not JSON"),
        (PREFERENCE, "training file, line 2: holds preference pairs, but the file began with"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, second: Any, expected: str) -> None:
    error = refusal(tmp_path, Conversation, {"messages": [USER, ANSWER]}, second)
    assert error.reason == "INVALID_EXAMPLE"
    assert str(error).startswith(expected)
    assert str(error).endswith("; correct the line and upload again")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert refusal(tmp_path, Text, b"\n").reason == "EMPTY_FILE"
    assert refusal(tmp_path, Text, b"PAR1xxxxxxPAR1").reason == "INVALID_EXAMPLE"
    assert refusal(tmp_path, Text, {"zzz": 1}).reason == "INVALID_EXAMPLE"
    path, digest = written(tmp_path / "file", {"text": "a"})
    path.write_bytes(b"changed")
    with pytest.raises(ExamplesError, match="expected sha256:") as changed:
        read(path, digest, Text, "training file")
    assert changed.value.reason == "FILE_CHANGED"
    path.unlink()
    with pytest.raises(ExamplesError, match="upload it again") as missing:
        read(path, digest, Text, "training file")
    assert missing.value.reason == "FILE_MISSING"
