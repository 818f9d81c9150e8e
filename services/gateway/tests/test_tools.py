"""Functions that a model may call, through the unmodified ``openai`` package."""

import json
from typing import Any

import grpc
import openai
import pydantic
import pytest
from gateway_fakes import CHATML, TOOL_TEMPLATE, WEATHER_CALL, WEATHER_PARAMETERS, Answer
from gateway_mesh import Mesh

WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Now.", "parameters": WEATHER_PARAMETERS},
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
USER: Any = {"role": "user", "content": "How is it in Köln?"}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"const": "weather"}, "arguments": WEATHER_PARAMETERS},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    mesh.serve_routes([mesh.route(chat_template=TOOL_TEMPLATE, version=2)])
    return mesh.openai()


def test_a_call_and_its_answer(mesh: Mesh, client: openai.OpenAI) -> None:
    """The loop that every agent has."""
    mesh.triton.answer = Answer(["Let me see.\n", *WEATHER_CALL, "\n", *WEATHER_CALL])
    messages: list[Any] = [USER]
    choice = client.chat.completions.create(
        model="demo", messages=messages, tools=[WEATHER, TIME]
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    first, second = choice.message.tool_calls
    assert first.type == "function" and first.function.name == "weather"
    assert json.loads(first.function.arguments) == {"city": "Köln"}
    assert first.id != second.id
    prompt = mesh.triton.requests[0]["prompt"]
    assert prompt == (
        f"<tools>{json.dumps(WEATHER)}{json.dumps(TIME)}</tools>\n"
        "<|user|>How is it in Köln?\n<|assistant|>"
    )
    assert "stop" not in mesh.triton.requests[0]["sampling"]
    messages += [choice.message, {"role": "tool", "tool_call_id": first.id, "content": "wet"}]
    mesh.triton.answer = Answer(["It is wet."])
    answer = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It is wet."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
    assert mesh.triton.requests[1]["prompt"].endswith(
        f"<|assistant|>Let me see.{call}{call}\n<|tool|>wet{first.id}\n<|assistant|>"
    )


def test_calls_in_a_stream(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(["See: ", *WEATHER_CALL, "\n", *WEATHER_CALL])
    with client.chat.completions.stream(model="demo", messages=[USER], tools=[WEATHER]) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        message = stream.get_final_completion().choices[0].message
    assert "".join(texts) == message.content == "See:"
    assert message.tool_calls is not None
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [
        {"city": "Köln"}
    ] * 2
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=[USER], tools=[WEATHER], stream=True, n=2
        )
    )
    ends = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
    assert ends == ["tool_calls", "tool_calls"]
    heads = [
        (chunk.choices[0].index, call.index)
        for chunk in chunks
        for call in chunk.choices[0].delta.tool_calls or []
        if call.id
    ]
    assert sorted(heads) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("choice", "tools", "schema"),
    [
        ({"type": "function", "function": {"name": "weather"}}, [WEATHER, TIME], SCHEMA),
        ("required", [WEATHER], SCHEMA),
        (
            "required",
            [WEATHER, TIME],
            {
                "anyOf": [
                    SCHEMA,
                    {
                        **SCHEMA,
                        "properties": {"name": {"const": "time"}, "arguments": {"type": "object"}},
                    },
                ]
            },
        ),
    ],
)
def test_a_call_that_is_demanded(
    mesh: Mesh, client: openai.OpenAI, choice: Any, tools: list[Any], schema: Any
) -> None:
    mesh.triton.answer = Answer(['{"name": "weather", ', '"arguments": {"city": "Bonn"}}'])
    created = client.chat.completions.create(
        model="demo", messages=[USER], tools=tools, tool_choice=choice
    )
    message = created.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Bonn"}
    (request,) = mesh.triton.requests
    assert request["prompt"].endswith("<|assistant|><tool_call>\n")
    assert request["sampling"]["response_format"] == {"type": "json_schema", "schema": schema}


def test_a_demanded_call_that_is_cut_off_is_text(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(['{"name": "wea'], finish_reason="length")
    choice = client.chat.completions.create(
        model="demo", messages=[USER], tools=[WEATHER], tool_choice="required"
    ).choices[0]
    assert (choice.message.content, choice.finish_reason) == ('{"name": "wea', "length")


def test_schemas_that_refer_to_parts_of_themselves(mesh: Mesh, client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        name: str

    class Trip(pydantic.BaseModel):
        start: Place
        end: Place

    tool: Any = openai.pydantic_function_tool(Trip)
    client.chat.completions.create(
        model="demo", messages=[USER], tools=[tool], tool_choice="required"
    )
    schema = mesh.triton.requests[0]["sampling"]["response_format"]["schema"]
    assert schema["properties"]["arguments"] == {"$ref": "#/$defs/Trip"}
    inner = schema["$defs"]["Trip"]
    assert inner["properties"]["start"] == {"$ref": "#/$defs/Trip/$defs/Place"}
    assert inner["$defs"]["Place"]["properties"]["name"]["type"] == "string"


def test_a_schema_that_the_engine_refuses_is_the_tools(mesh: Mesh, client: openai.OpenAI) -> None:
    refusal = "response_format: not in schema.properties.arguments is not supported"
    mesh.triton.answer = Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, refusal))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[USER], tools=[WEATHER], tool_choice="required"
        )
    assert caught.value.param == "tools"


def test_no_parallel_calls(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer([*WEATHER_CALL[:2], 'ments": {"city": "Ulm"}}\n'])
    created = client.chat.completions.create(
        model="demo", messages=[USER], tools=[WEATHER], parallel_tool_calls=False, stop="END"
    )
    calls = created.choices[0].message.tool_calls
    assert calls is not None and len(calls) == 1
    assert mesh.triton.requests[0]["sampling"]["stop"] == ["END", "</tool_call>"]


def test_tools_that_are_not_to_be_called(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(WEATHER_CALL)
    choice = client.chat.completions.create(
        model="demo", messages=[USER], tools=[WEATHER], tool_choice="none"
    ).choices[0]
    assert (choice.message.content, choice.message.tool_calls) == ("".join(WEATHER_CALL), None)
    assert "tools" not in mesh.triton.requests[0]["prompt"]


def test_a_template_without_tools_says_so(mesh: Mesh) -> None:
    mesh.serve_routes([mesh.route(chat_template=CHATML)])
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().chat.completions.create(model="demo", messages=[USER], tools=[WEATHER])
    assert caught.value.param == "tools"
    assert mesh.triton.requests == []


def test_arguments_in_templates_that_print_them_as_text(mesh: Mesh) -> None:
    template = "{{ '[' + messages[0].tool_calls[0].function.arguments + ']' }}"
    mesh.serve_routes([mesh.route(chat_template=template)])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":  1}'}}
    message: Any = {"role": "assistant", "content": None, "tool_calls": [call]}
    mesh.openai().chat.completions.create(model="demo", messages=[message])
    assert mesh.triton.requests[0]["prompt"] == '[{"a":  1}]'


def strict(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "strict": True}}


def called(arguments: str) -> list[Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER, strict("f")]}, "tools[1].function.strict"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [TIME],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "tool_choice",
        ),
        ({"messages": called("{}x")}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": called("[]")}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]},
            "messages[0].tool_call_id",
        ),
        (
            {"messages": [{**called("{}")[0], "role": "user"}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_mistakes(mesh: Mesh, client: openai.OpenAI, change: Any, param: str) -> None:
    body = {"model": "demo", "messages": [USER], **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param
    assert mesh.triton.requests == []
