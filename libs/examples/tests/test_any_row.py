"""Whatever a row holds, it gets a verdict; what is valid is read as it was written."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_examples.formats import FORMATS, candidates, row_mistakes
from millrace_examples.kinds import Conversation, Preference
from millrace_examples.report import check
from millrace_examples.rows import row_of_line
from millrace_examples.sizes import size_of

FIELDS = sorted({field for known in FORMATS for field in known.fields})
INNER = ["role", "content", "weight", "tool_calls", "function", "name", "from", "value", "text"]
WORDS = ["user", "assistant", "tool", "human", "gpt", "function_call", "{}", "[]", '{"name": "f"}']
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS + INNER), inner)
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": JSON},
    optional={"weight": JSON, "tool_calls": JSON, "tool_call_id": JSON, "name": JSON},
)
TURN = st.fixed_dictionaries({"from": st.sampled_from(WORDS), "value": JSON | st.text()})
VALUE = st.one_of(JSON, st.text(), st.lists(MESSAGE, max_size=3), st.lists(TURN, max_size=3), TURN)
ROW = st.dictionaries(st.sampled_from(FIELDS), VALUE, max_size=6)


@settings(max_examples=300)
@given(ROW | JSON)
def test_any_json_gets_a_verdict(value: Any) -> None:
    row = row_of_line(1, json.dumps(value).encode())
    if row.problem:
        return
    for known in candidates(row.value):
        mistakes = row_mistakes(known, row.value)
        for place, message in mistakes:
            f"{place}{message}".encode()
        if not mistakes:
            example = known.parse(1, row.value)
            assert isinstance(example, known.kind)
            assert size_of(example).tokens >= 0


@settings(max_examples=50)
@given(st.binary(max_size=200) | st.lists(ROW, max_size=3).map(lambda r: json.dumps(r).encode()))
def test_any_file_gets_a_report(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(content)
        for filename in ("a.jsonl", "a.txt"):
            report = check(path, filename)
            for problem in report.problems:
                str(problem).encode()


SAID = st.text(st.characters(codec="utf-8"), min_size=1)
TURNS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4)


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


@given(TURNS)
def test_one_conversation_in_three_formats_is_the_same(turns: list[tuple[str, str]]) -> None:
    messages = messages_of(turns)
    said = [
        {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
        for m in messages
    ]
    *history, (asked, answered) = turns
    written: list[dict[str, Any]] = [
        {"messages": messages},
        {"conversations": said},
        {"instruction": asked, "output": answered, "history": [list(turn) for turn in history]},
    ]
    for row in written:
        read = row_of_line(1, json.dumps(row).encode()).value
        chosen = candidates(read)[0]
        assert row_mistakes(chosen, read) == []
        assert chosen.parse(1, read) == Conversation(1, tuple(messages))


@given(TURNS, SAID, SAID)
def test_one_preference_in_three_formats_is_the_same(
    turns: list[tuple[str, str]], better: str, worse: str
) -> None:
    messages = messages_of(turns)[:-1]
    answers = [{"role": "assistant", "content": text} for text in (better, f"{better}{worse}")]
    chosen, rejected = answers
    written: list[dict[str, Any]] = [
        {
            "input": {"messages": messages},
            "preferred_output": [chosen],
            "non_preferred_output": [rejected],
        },
        {"prompt": messages, "chosen": [chosen], "rejected": [rejected]},
        {"chosen": [*messages, chosen], "rejected": [*messages, rejected]},
    ]
    expected = Preference(1, tuple(messages), (), (chosen,), (rejected,))
    for row in written:
        known = candidates(row)[0]
        assert row_mistakes(known, row) == []
        assert known.parse(1, row) == expected
