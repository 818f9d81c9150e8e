import json
from pathlib import Path
from typing import Any

import pytest
from tuner_builders import conversations, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError
from millrace_tuner.jobs.conversations import Mistake, parse_conversation, read_conversations

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def mistake_of(example: Any) -> str:
    line = example if isinstance(example, bytes) else json.dumps(example).encode()
    with pytest.raises(Mistake) as caught:
        parse_conversation(1, line)
    return str(caught.value)


@pytest.mark.parametrize(
    ("example", "place"),
    [
        ([], "must be a JSON object"),
        (b"{", "is not JSON"),
        (b'"\xff"', "is not UTF-8"),
        ({}, "messages: must be a non-empty list"),
        ({"messages": [USER, ANSWER], "prompt": "x"}, "prompt: is not a field of an example"),
        ({"messages": ["Hi", ANSWER]}, "messages[0]: must be an object"),
        ({"messages": [{"role": "bot", "content": "x"}, ANSWER]}, "messages[0].role: must be one"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "messages[1].content: must be"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1].content: must n"),
        ({"messages": [{**USER, "content": "\ud800"}, ANSWER]}, "messages[0].content: has half"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "messages[0].weight: is for assistant"),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, "messages[1].weight: must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, "messages[1].weight: must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "messages: every assistant message"),
        ({"messages": [USER, ANSWER, USER]}, "messages[2].role: the last message must be"),
        ({"messages": [USER, {**ANSWER, "mood": "good"}]}, "messages[1].mood: is not a field"),
        ({"messages": [USER, {**ANSWER, "tool_calls": []}]}, "messages[1].tool_calls: must be a"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[1].tool_calls[0].function.arguments: must be a string",
        ),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "tools[0].function.name: must be a string"),
    ],
)
def test_a_mistake_names_its_field(example: Any, place: str) -> None:
    assert mistake_of(example).startswith(place)


def test_a_file_names_the_line_at_fault(tmp_path: Path) -> None:
    examples = [*conversations(2), {"messages": [USER]}]
    digest = write_jsonl(tmp_path / "train.jsonl", examples)
    with pytest.raises(JobError, match=r"training file, line 3: messages\[0\]\.role") as caught:
        read_conversations(tmp_path / "train.jsonl", digest, "training file")
    assert caught.value.reason == "INVALID_EXAMPLE"


def test_blank_lines_are_skipped_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(example) for example in conversations(2)]
    path.write_text(f"\n{lines[0]}\n\n{lines[1]}")
    read = read_conversations(path, manifest.sha256_file(path), "training file")
    assert [conversation.line for conversation in read] == [2, 4]


@pytest.mark.parametrize(
    ("content", "digest", "reason"),
    [
        (b"\n\n", None, "EMPTY_FILE"),
        (b"changed", "sha256:" + "0" * 64, "FILE_CHANGED"),
        (None, "sha256:" + "0" * 64, "FILE_MISSING"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, digest: str | None, reason: str
) -> None:
    path = tmp_path / "train.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        read_conversations(path, digest or manifest.sha256_file(path), "training file")
    assert caught.value.reason == reason
