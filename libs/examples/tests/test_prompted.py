"""Rows of columns, as a template makes examples of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from millrace_examples.kinds import Conversation, Preference, Task
from millrace_examples.prompt_template import Template, normal_template, template_of
from millrace_examples.prompted import Prompting, read_prompted
from millrace_examples.reading import ExamplesError, read

TEMPLATE = template_of(
    normal_template(
        {
            "messages": [
                {"role": "system", "content": "Be {{tone}}."},
                {"role": "user", "content": "{{question}}"},
            ],
            "variables": {"tone": {"default": "brief"}},
            "examples": [{"input": "Few?", "output": "Shot."}],
        }
    )
)
SHOT = ({"role": "user", "content": "Few?"}, {"role": "assistant", "content": "Shot."})


def prompt(question: str = "Q", tone: str = "brief") -> tuple[dict[str, Any], ...]:
    system = {"role": "system", "content": f"Be {tone}."}
    return (system, *SHOT, {"role": "user", "content": question})


def taken(
    tmp_path: Path,
    wanted: type[Any],
    *rows: Any,
    completion: str = "",
    template: Template = TEMPLATE,
) -> list[Any]:
    content = "\n".join(map(json.dumps, rows)).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    prompting = Prompting(template, completion)
    return read_prompted(path, digest, wanted, "training file", "supervised", prompting)


def test_the_answer_is_learnt_and_nothing_else(tmp_path: Path) -> None:
    rows = [
        {"question": "Q", "answer": "A"},
        {"question": 7, "answer": True, "tone": "kind", "other": None},
    ]
    first, second = taken(tmp_path, Conversation, *rows)
    assert [m.get("weight") for m in first.messages] == [None, None, 0, None, None]
    told = tuple({k: v for k, v in m.items() if k != "weight"} for m in first.messages)
    assert told == (*prompt(), {"role": "assistant", "content": "A"})
    assert [m["content"] for m in second.messages] == [
        "Be kind.",
        "Few?",
        "Shot.",
        "7",
        "true",
    ]


def test_which_column_is_the_answer(tmp_path: Path) -> None:
    row = {"question": "Q", "completion": "C", "output": "O", "mine": "M"}
    assert taken(tmp_path, Conversation, row)[0].messages[-1]["content"] == "C"
    named = taken(tmp_path, Conversation, row, completion="mine")
    assert named[0].messages[-1]["content"] == "M"
    uses = normal_template({"messages": [{"role": "user", "content": "{{completion}}"}]})
    made = taken(tmp_path, Conversation, row, template=template_of(uses))
    assert made[0].messages[-1]["content"] == "O"


def test_preferences_and_tasks(tmp_path: Path) -> None:
    pair = {"question": "Q", "chosen": "Good", "rejected": "Bad"}
    (preference,) = taken(tmp_path, Preference, pair)
    assert preference == Preference(
        1,
        prompt(),
        (),
        ({"role": "assistant", "content": "Good"},),
        ({"role": "assistant", "content": "Bad"},),
    )
    (task,) = taken(tmp_path, Task, {"question": "Q", "reference": 4})
    assert task == Task(1, prompt(), (), {"question": "Q", "reference": 4})


@pytest.mark.parametrize(
    ("wanted", "row", "said"),
    [
        (Conversation, {"query": "Q", "answer": "A"}, "line 2: question: is a variable"),
        (Conversation, {"question": "Q", "reply": "A"}, "`prompt.completion`: there is"),
        (Conversation, {"question": "Q", "answer": ""}, "line 2: answer: must hold the answer"),
        (Preference, {"question": "Q", "chosen": "A"}, "line 2: rejected: must hold"),
        (Preference, {"question": "Q", "chosen": "A", "rejected": "A"}, "line 2: rejected: is the"),
        (Task, {"question": ["Q"], "answer": "A"}, "line 2: question: must be a string or"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, wanted: type[Any], row: dict[str, Any], said: str
) -> None:
    good = {"question": "Q", "answer": "A", "chosen": "A", "rejected": "B"}
    with pytest.raises(ExamplesError) as caught:
        taken(tmp_path, wanted, good, row)
    assert caught.value.reason == "INVALID_EXAMPLE"
    assert said in str(caught.value)


def test_conversations_are_no_rows_of_columns(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="`prompt`") as caught:
        taken(tmp_path, Conversation, {"messages": [{"role": "user", "content": "Q"}]})
    assert caught.value.reason == "WRONG_FORMAT"


def test_a_job_without_a_template_refuses_columns_and_names_it(tmp_path: Path) -> None:
    content = json.dumps({"question": "Q", "reply": "A"}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with pytest.raises(ExamplesError, match="as the job's `prompt`") as caught:
        read(path, digest, Conversation, "training file", "supervised")
    assert caught.value.reason == "WRONG_FORMAT"
