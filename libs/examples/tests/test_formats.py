"""Each format: rows that are right and what they mean, and mistakes with their exact words."""

import json
from typing import Any

import pytest

from millrace_examples.formats import (
    FORMATS,
    alternatives,
    candidates,
    candidates_for,
    row_mistakes,
    unknown_format,
)
from millrace_examples.kinds import (
    Classified,
    Columns,
    Conversation,
    Example,
    Judged,
    Pair,
    Preference,
    Task,
    Text,
)

USER = {"role": "user", "content": "Question?"}
ANSWER = {"role": "assistant", "content": "Answer."}
WORSE = {"role": "assistant", "content": "No."}
GIVEN = {**ANSWER, "weight": 0}
SYSTEM = {"role": "system", "content": "Be kind."}
FUNCTION = {"name": "f", "description": "Finds.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "c1"}
HUMAN, GPT = {"from": "human", "value": "Question?"}, {"from": "gpt", "value": "Answer."}
BAD_GPT = {"from": "gpt", "value": "No."}
ALPACA = {"instruction": "Question?", "output": "Answer."}
OPENAI_PREFERENCE = {
    "input": {"messages": [USER]},
    "preferred_output": [ANSWER],
    "non_preferred_output": [WORSE],
}

GOOD: list[tuple[str, dict[str, Any], Example]] = [
    ("openai_chat", {"messages": [USER, ANSWER]}, Conversation(3, (USER, ANSWER))),
    (
        "openai_chat",
        {"messages": [SYSTEM, USER, CALLING, RESULT, ANSWER], "tools": [TOOL], "id": 7},
        Conversation(3, (SYSTEM, USER, CALLING, RESULT, ANSWER), (TOOL,)),
    ),
    (
        "openai_chat",
        {"messages": [USER, GIVEN, USER, {**ANSWER, "refusal": None, "annotations": []}]},
        Conversation(3, (USER, GIVEN, USER, ANSWER)),
    ),
    (
        "openai_chat",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Quest"},
                        {"type": "text", "text": "ion?"},
                    ],
                },
                ANSWER,
            ],
            "tools": None,
            "parallel_tool_calls": False,
        },
        Conversation(3, (USER, ANSWER)),
    ),
    ("openai_preference", OPENAI_PREFERENCE, Preference(3, (USER,), (), (ANSWER,), (WORSE,))),
    (
        "openai_preference",
        {**OPENAI_PREFERENCE, "input": {"messages": [USER], "tools": [TOOL]}},
        Preference(3, (USER,), (TOOL,), (ANSWER,), (WORSE,)),
    ),
    (
        "openai_reinforcement",
        {"messages": [SYSTEM, USER], "tools": [TOOL], "reference_answer": {"value": 4}},
        Task(3, (SYSTEM, USER), (TOOL,), {"reference_answer": {"value": 4}}),
    ),
    (
        "preference",
        {"prompt": "Question?", "chosen": "Answer.", "rejected": "No."},
        Preference(3, (USER,), (), (ANSWER,), (WORSE,)),
    ),
    (
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE], "tools": [TOOL]},
        Preference(3, (USER,), (TOOL,), (ANSWER,), (WORSE,)),
    ),
    (
        "preference",
        {"chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WORSE]},
        Preference(3, (SYSTEM, USER), (), (ANSWER,), (WORSE,)),
    ),
    (
        "preference",
        {"prompt": "Question?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        Preference(3, (USER,), (), (ANSWER,), (WORSE,)),
    ),
    (
        "kto",
        {"prompt": "Question?", "completion": "No.", "label": False},
        Judged(3, (USER,), (WORSE,), is_good=False),
    ),
    (
        "kto",
        {"prompt": [USER], "completion": [ANSWER], "label": True},
        Judged(3, (USER,), (ANSWER,), is_good=True),
    ),
    (
        "sharegpt",
        {"conversations": [HUMAN, GPT], "system": "Be kind.", "tools": json.dumps([FUNCTION])},
        Conversation(3, (SYSTEM, USER, ANSWER), (TOOL,)),
    ),
    (
        "sharegpt",
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "f", "arguments": {"ä": 1}}'},
                {"from": "observation", "value": "42"},
                GPT,
            ]
        },
        Conversation(
            3,
            (
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_0",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"ä": 1}'},
                        }
                    ],
                },
                {"role": "tool", "content": "42", "tool_call_id": "call_0"},
                ANSWER,
            ),
        ),
    ),
    ("sharegpt", {"conversations": [USER, ANSWER]}, Conversation(3, (USER, ANSWER))),
    (
        "sharegpt",
        {"conversations": [HUMAN, {**GPT, "weight": 0}, HUMAN, GPT]},
        Conversation(3, (USER, GIVEN, USER, ANSWER)),
    ),
    (
        "sharegpt_preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD_GPT},
        Preference(3, (USER,), (), (ANSWER,), (WORSE,)),
    ),
    (
        "sharegpt_kto",
        {"conversations": [HUMAN, GPT], "kto_tag": True},
        Judged(3, (USER,), (ANSWER,), is_good=True),
    ),
    ("alpaca", ALPACA, Conversation(3, (USER, ANSWER))),
    (
        "alpaca",
        {**ALPACA, "input": "Now.", "system": "Be kind.", "history": [["Question?", "Answer."]]},
        Conversation(
            3, (SYSTEM, USER, ANSWER, {"role": "user", "content": "Question?\nNow."}, ANSWER)
        ),
    ),
    (
        "alpaca_preference",
        {"instruction": "Question?", "input": "", "chosen": "Answer.", "rejected": "No."},
        Preference(3, (USER,), (), (ANSWER,), (WORSE,)),
    ),
    ("alpaca_kto", {**ALPACA, "kto_tag": False}, Judged(3, (USER,), (ANSWER,), is_good=False)),
    (
        "prompt_completion",
        {"prompt": "Question?", "completion": "Answer."},
        Conversation(3, (USER, ANSWER)),
    ),
    (
        "prompt_completion",
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
        Conversation(3, (USER, GIVEN, USER, ANSWER)),
    ),
    ("prompt", {"prompt": "Question?", "answer": 4}, Task(3, (USER,), (), {"answer": 4})),
    ("text", {"text": "Once upon a time"}, Text(3, "Once upon a time")),
    ("classification", {"text": "Buy!", "label": "spam"}, Classified(3, "Buy!", (), "spam")),
    ("classification", {"messages": [USER], "label": 0}, Classified(3, "", (USER,), 0)),
    ("pairs", {"source": "Haus", "target": "house"}, Pair(3, "Haus", "house")),
    ("table", {"q": "What?", "n": 4, "no": None}, Columns(3, {"q": "What?", "n": 4})),
]


@pytest.mark.parametrize(("name", "row", "meaning"), GOOD)
def test_a_row_is_told_and_means(name: str, row: dict[str, Any], meaning: Example) -> None:
    chosen = candidates(row)[0]
    assert chosen.name == name
    assert row_mistakes(chosen, row) == []
    assert chosen.parse(3, row) == meaning


def test_every_format_has_a_good_row() -> None:
    assert {name for name, _, _ in GOOD} == {known.name for known in FORMATS}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def sharegpt(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


ROLES = "must be one of system, developer, user, assistant, tool, not"
SPEAKERS = "must be one of human, gpt, system, function_call, observation, not"
TOO_DEEP: Any = "x"
for _ in range(80):
    TOO_DEEP = [TOO_DEEP]

BAD: list[tuple[dict[str, Any], str, str]] = [
    (chat(), "messages", "must be a non-empty list"),
    ({"messages": "hi"}, "messages", "must be a non-empty list"),
    (chat("hi", ANSWER), "messages[0]", "must be an object, not a string"),
    (chat({**USER, "role": "bot"}, ANSWER), "messages[0].role", f'{ROLES} "bot"'),
    (chat({**USER, "role": [1]}, ANSWER), "messages[0].role", f"{ROLES} a list"),
    (chat({"content": "x"}, ANSWER), "messages[0].role", f"{ROLES} null"),
    (chat({"role": "user"}, ANSWER), "messages[0].content", "must be a string, not null"),
    (chat({**USER, "content": 3}, ANSWER), "messages[0].content", "must be a string, not a number"),
    (chat({**USER, "content": ""}, ANSWER), "messages[0].content", "must not be empty"),
    (
        chat({**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        "messages[0].content[0].type",
        'must be "text", not "image_url"; only text is learnt',
    ),
    (
        chat({**USER, "content": "\ud800"}, ANSWER),
        "messages[0].content",
        "has half a surrogate pair, which UTF-8 cannot hold",
    ),
    (
        chat({**USER, "contents": "x"}, ANSWER),
        "messages[0].contents",
        "is not a field of a message",
    ),
    (
        chat(USER, {**ANSWER, "function_call": {"name": "f"}}),
        "messages[1].function_call",
        "is deprecated; write it as tool_calls",
    ),
    (chat(USER), "messages[0].role", 'the last message must be the assistant\'s, not "user"'),
    (
        chat({**USER, "weight": 1}, ANSWER),
        "messages[0].weight",
        "is for assistant messages only",
    ),
    (chat(USER, {**ANSWER, "weight": 0.5}), "messages[1].weight", "must be 0 or 1, not 0.5"),
    (chat(USER, {**ANSWER, "weight": True}), "messages[1].weight", "must be 0 or 1, not true"),
    (
        chat(USER, {**ANSWER, "weight": 0}),
        "messages",
        "every assistant message has weight 0: nothing would be learnt",
    ),
    (
        chat({"role": "tool", "content": "4"}, ANSWER),
        "messages[0].tool_call_id",
        "must name the tool call that this message answers",
    ),
    (
        chat({**USER, "tool_calls": [CALL]}, ANSWER),
        "messages[0].tool_calls",
        "is for assistant messages only",
    ),
    (
        chat(USER, {**ANSWER, "tool_calls": []}),
        "messages[1].tool_calls",
        "must be a non-empty list",
    ),
    (
        chat(USER, {**ANSWER, "tool_calls": [{}]}),
        "messages[1].tool_calls[0].function",
        "must be an object",
    ),
    (
        chat(USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}),
        "messages[1].tool_calls[0].function.arguments",
        "must be a string",
    ),
    (chat(USER, ANSWER, tools=[{}]), "tools[0].function.name", "must be a string"),
    (chat(USER, ANSWER, tools={}), "tools", "must be a list, not an object"),
    (
        chat(USER, ANSWER, tools=[{"type": "retrieval", "function": FUNCTION}]),
        "tools[0].type",
        'must be "function", not "retrieval"',
    ),
    (chat(USER, ANSWER, functions=[FUNCTION]), "functions", "is deprecated; write tools"),
    (
        chat(USER, ANSWER, parallel_tool_calls="no"),
        "parallel_tool_calls",
        'must be true or false, not "no"',
    ),
    (
        chat(USER, ANSWER, tool=[TOOL]),
        "tool",
        "is not a field of an example; it has messages, parallel_tool_calls, tools",
    ),
    (chat(USER, ANSWER, tools=TOO_DEEP), "tools" + "[0]" * 63, "is nested deeper than 64 levels"),
    (
        {**OPENAI_PREFERENCE, "input": "Question?"},
        "input",
        "must be an object, not a string",
    ),
    (
        {**OPENAI_PREFERENCE, "input": {"messages": [USER, ANSWER]}},
        "input.messages[1].role",
        'the last message must be one of user, developer, tool, not "assistant"',
    ),
    (
        {**OPENAI_PREFERENCE, "input": {"messages": [USER], "temperature": 1}},
        "input.temperature",
        "is not a field of input",
    ),
    ({**OPENAI_PREFERENCE, "preferred_output": []}, "preferred_output", "must be a non-empty list"),
    (
        {**OPENAI_PREFERENCE, "preferred_output": [USER]},
        "preferred_output[0].role",
        'must be assistant or tool, not "user"',
    ),
    (
        {**OPENAI_PREFERENCE, "non_preferred_output": [ANSWER]},
        "non_preferred_output",
        "is the same as preferred_output: nothing would be learnt",
    ),
    (
        {**OPENAI_PREFERENCE, "preferred_output": [{**ANSWER, "weight": 1}]},
        "preferred_output[0].weight",
        "has no meaning here; remove it",
    ),
    (
        chat(USER, SYSTEM, answer="x"),
        "messages[1].role",
        'the last message must be one of user, developer, tool, not "system"',
    ),
    (
        {"chosen": "Answer.", "rejected": "No."},
        "prompt",
        "is missing, and chosen and rejected do not both begin with it as messages",
    ),
    (
        {"prompt": "Question?", "chosen": 1, "rejected": "No."},
        "chosen",
        "must be a string or a list of messages, not a number",
    ),
    (
        {"prompt": "Question?", "chosen": "No.", "rejected": "No."},
        "rejected",
        "is the same as chosen: nothing would be learnt",
    ),
    (
        {"prompt": "Other?", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
        "prompt",
        "is not what chosen and rejected begin with",
    ),
    (
        {"chosen": [SYSTEM, USER, ANSWER], "rejected": [USER, WORSE]},
        "rejected",
        "must begin with the same messages as chosen",
    ),
    (
        {"prompt": "Question?", "completion": "No.", "label": 1},
        "label",
        "must be true (a good answer) or false, not 1",
    ),
    (sharegpt(), "conversations", "must be a non-empty list"),
    (sharegpt({**HUMAN, "from": "bot"}, GPT), "conversations[0].from", f'{SPEAKERS} "bot"'),
    (
        sharegpt({**HUMAN, "mood": 1}, GPT),
        "conversations[0].mood",
        "is not a field of a turn",
    ),
    (
        sharegpt(HUMAN, {"from": "gpt", "value": None}),
        "conversations[1].value",
        "must be a string, not null",
    ),
    (
        sharegpt(HUMAN, {"from": "gpt", "value": ""}, system="Be kind."),
        "conversations[1].value",
        "must not be empty",
    ),
    (
        sharegpt(HUMAN),
        "conversations[0].from",
        'the last message must be the assistant\'s, not "user"',
    ),
    (
        sharegpt(HUMAN, {"from": "function_call", "value": "f()"}),
        "conversations[1].value",
        'must be the JSON of {"name": …, "arguments": …}, or of a list of them',
    ),
    (
        sharegpt(HUMAN, GPT, tools="[1"),
        "tools",
        "is a string, but not the JSON of a list: "
        "Expecting ',' delimiter: line 1 column 3 (char 2)",
    ),
    (
        sharegpt(HUMAN, chosen=HUMAN, rejected=GPT),
        "chosen.from",
        'must be assistant or tool, not "user"',
    ),
    (
        sharegpt(HUMAN, GPT, chosen=GPT, rejected=BAD_GPT),
        "conversations[1].from",
        'the last message must be one of user, developer, tool, not "assistant"',
    ),
    ({"instruction": "", "output": "x"}, "instruction", "must not be empty"),
    ({"instruction": "x"}, "output", "must be a string, not null"),
    ({**ALPACA, "input": 3}, "input", "must be a string, not a number"),
    (
        {**ALPACA, "history": [["one"]]},
        "history[0]",
        "must be [question, answer], two strings that are not empty",
    ),
    (
        {**ALPACA, "kto_tag": "yes"},
        "kto_tag",
        'must be true (a good answer) or false, not "yes"',
    ),
    ({"prompt": "", "completion": "x"}, "prompt", "must not be empty"),
    (
        {"prompt": "x", "completion": None},
        "completion",
        "must be a string or a list of messages, not null",
    ),
    ({"text": None}, "text", "must be a string, not null"),
    ({"text": "x", "label": 0.5}, "label", "must be a string or a whole number, not 0.5"),
    (
        {"text": "x", "messages": [USER], "label": "a"},
        "text",
        "stands beside messages; give one of the two",
    ),
    ({"source": "x", "target": ""}, "target", "must not be empty"),
]


@pytest.mark.parametrize(("row", "place", "message"), BAD)
def test_a_mistake_names_its_field(row: dict[str, Any], place: str, message: str) -> None:
    assert (place, message) in row_mistakes(candidates(row)[0], row)


def test_a_row_of_another_format_says_so() -> None:
    chat_format = candidates({"messages": [USER, ANSWER]})[0]
    assert row_mistakes(chat_format, ALPACA) == [
        (
            "",
            "holds instructions as Alpaca has them, but the file began with chat conversations: "
            "keep one format a file",
        )
    ]


def test_messages_that_end_with_a_question_are_open() -> None:
    assert [f.name for f in alternatives({"messages": [USER]})] == [
        "openai_chat",
        "openai_reinforcement",
    ]
    assert [f.name for f in candidates_for({"messages": [USER]}, Task)] == ["openai_reinforcement"]


def test_a_label_is_a_class_or_a_graders_field() -> None:
    row = {"messages": [USER], "label": "spam"}
    assert candidates_for(row, Classified)[0].parse(1, row) == Classified(1, "", (USER,), "spam")
    assert candidates_for(row, Task)[0].parse(1, row) == Task(1, (USER,), (), {"label": "spam"})
    assert candidates_for(row, Conversation) == []


def test_a_row_of_no_format_hears_which_there_are() -> None:
    said = unknown_format({"instructions": "x", "answer": "y"})
    assert "nearest is alpaca, " in said
    assert all(known.name in said and known.shape in said for known in FORMATS)
    assert "nearest" not in unknown_format({"zzz": 1})


def test_names_and_values_in_messages_are_short_and_printable() -> None:
    row = chat({**USER, "role": "x" * 10_000, "\ud800": 1, "y" * 10_000: 2}, ANSWER)
    found = row_mistakes(candidates(row)[0], row)
    for place, message in found:
        f"{place}{message}".encode()
        assert len(place) + len(message) < 300


def test_a_table_is_what_nothing_else_is() -> None:
    assert candidates({"prompt": "Question?", "answer": "A"})[0].name == "prompt"
    assert [f.name for f in candidates({"question": "Q", "more": ["x"]})] == []
    assert [f.name for f in candidates({"question": "one column"})] == []
    row = {"instruction": "I", "output": "O"}
    assert candidates_for(row, Columns)[0].parse(1, row) == Columns(1, row)


@pytest.mark.parametrize(
    "row",
    [{"question": "Q", "chosen": "A", "rejected": "B"}, {"instruction": "I", "answer": "A"}],
)
def test_a_flat_row_without_what_its_format_needs_may_be_for_a_template(
    row: dict[str, Any],
) -> None:
    assert [f.name for f in alternatives(row)][1:] == ["table"]
    assert len(alternatives({**row, "prompt": "P", "output": "O"})) == 1


def test_a_row_of_a_table_is_flat() -> None:
    found = row_mistakes(candidates({"a": "1", "b": "2"})[0], {"a": ["1"], "b": "2"})
    assert found == [("a", "must be a string or a number, not a list")]
