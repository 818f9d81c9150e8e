"""The stateless Responses API through the ``openai`` package."""

import json
from typing import Any

import grpc
import openai
import pydantic
import pytest
from gateway_fakes import TOOL_TEMPLATE, WEATHER_CALL, WEATHER_PARAMETERS, Answer
from gateway_mesh import Mesh

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": WEATHER_PARAMETERS,
    "strict": None,
}


@pytest.fixture
def client(mesh: Mesh) -> openai.OpenAI:
    mesh.serve_routes([mesh.route(chat_template=TOOL_TEMPLATE, version=3)])
    return mesh.openai()


def test_a_text(mesh: Mesh, client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model="demo", input="Hi", instructions="Be kind.", max_output_tokens=20, temperature=0.5
    )
    response = raw.parse()
    assert response.output_text == "Hello 🙂"
    assert (response.status, response.model, response.temperature) == ("completed", "demo", 0.5)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert raw.headers["x-millrace-version"] == "demo@3"
    (request,) = mesh.triton.requests
    assert request["prompt"] == "<|system|>Be kind.\n<|user|>Hi\n<|assistant|>"
    assert request["sampling"] == {"max_tokens": 20, "temperature": 0.5}


def test_the_whole_conversation_is_sent_each_time(mesh: Mesh, client: openai.OpenAI) -> None:
    """As the SDK's users do it: what was put out is put in again."""
    mesh.triton.answer = Answer(["I look. ", *WEATHER_CALL])
    conversation: list[Any] = [{"role": "user", "content": "Köln?"}]
    first = client.responses.create(model="demo", input=conversation, tools=[TOOL])
    text, call = first.output
    assert text.type == "message"
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Köln"}
    conversation += first.output
    conversation.append(
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": [{"type": "input_text", "text": "wet"}],
        }
    )
    mesh.triton.answer = Answer(["Wet."])
    second = client.responses.create(model="demo", input=conversation, tools=[TOOL])
    assert second.output_text == "Wet."
    assert mesh.triton.requests[1]["prompt"].endswith(
        '<|assistant|>I look.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}'
        f"</tool_call>\n<|tool|>wet{call.call_id}\n<|assistant|>"
    )


def test_a_stream(mesh: Mesh, client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="demo", input="Hi", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello 🙂"
    assert last.response.usage is not None and last.response.usage.total_tokens == 10


def test_calls_in_a_stream(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(["See:\n", *WEATHER_CALL, *WEATHER_CALL])
    with client.responses.stream(model="demo", input="Köln?", tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") == 2
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    assert response.output_text == "See:"


def test_an_answer_that_is_cut_off(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(["Once upon"], finish_reason="length")
    response = client.responses.create(model="demo", input="Hi")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert list(client.responses.create(model="demo", input="Hi", stream=True))[-1].type == (
        "response.incomplete"
    )


def test_an_empty_answer_is_a_message_still(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer([""])
    (item,) = client.responses.create(model="demo", input="Hi").output
    assert item.type == "message" and item.status == "completed"


def test_an_answer_that_breaks_off(mesh: Mesh, client: openai.OpenAI) -> None:
    mesh.triton.answer = Answer(["a"], failure=(grpc.StatusCode.INTERNAL, "the engine died"))
    with pytest.raises(openai.InternalServerError, match="the engine died"):
        client.responses.create(model="demo", input="Hi")
    last = list(client.responses.create(model="demo", input="Hi", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None and "the engine died" in last.response.error.message


def test_forms(mesh: Mesh, client: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        city: str

    mesh.triton.answer = Answer(['{"city": ', '"Ulm"}'])
    parsed = client.responses.parse(model="demo", input="Where?", text_format=Place)
    assert parsed.output_parsed == Place(city="Ulm")
    told = mesh.triton.requests[0]["sampling"]["response_format"]
    assert told["type"] == "json_schema"
    assert told["schema"]["properties"]["city"]["type"] == "string"
    client.responses.create(
        model="demo", input="x", tools=[TOOL], tool_choice={"type": "function", "name": "weather"}
    )
    demanded = mesh.triton.requests[1]["sampling"]["response_format"]["schema"]
    assert demanded["properties"]["name"] == {"const": "weather"}


def test_logprobs(mesh: Mesh, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "input": "x",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 1,
    }
    message: Any = client.responses.create(**asked).output[0]
    assert [entry.token for entry in message.content[0].logprobs] == ["Hel", "lo", " 🙂"]
    assert message.content[0].logprobs[0].top_logprobs[0].logprob == -0.25
    deltas = [
        event.logprobs
        for event in client.responses.create(**asked, stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert [[entry.token for entry in entries] for entries in deltas] == [["Hel"], ["lo"], [" 🙂"]]


@pytest.mark.parametrize(
    ("change", "param", "word"),
    [
        ({"store": True}, "store", "whole conversation"),
        ({"previous_response_id": "resp-1"}, "previous_response_id", "whole conversation"),
        ({"background": True}, "background", "whole conversation"),
        ({"conversation": {"id": "c"}}, "conversation", "whole conversation"),
        ({"truncation": "auto"}, "truncation", ""),
        ({"reasoning": {"effort": "low"}}, "reasoning", ""),
        ({"top_logprobs": 1}, "top_logprobs", "include"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]", ""),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", ""),
        ({"tools": [{**TOOL, "strict": True}]}, "tools[0].strict", "demanded"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role", ""),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "x"}]},
            "input[0].arguments",
            "",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
            "input[0].content[0]",
            "",
        ),
    ],
)
def test_what_cannot_be(
    mesh: Mesh, client: openai.OpenAI, change: dict[str, Any], param: str, word: str
) -> None:
    body = {"model": "demo", "input": "x", **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body=body, cast_to=object)
    assert (caught.value.param or "").startswith(param)
    assert word in str(caught.value)
    assert mesh.triton.requests == []


def test_what_asks_for_nothing_is_accepted(mesh: Mesh, client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="demo", input="x", store=False, truncation="disabled", background=False
    )
    assert response.to_dict()["store"] is False


def test_the_engine_refuses_in_this_apis_words(mesh: Mesh, client: openai.OpenAI) -> None:
    refusal = (grpc.StatusCode.INVALID_ARGUMENT, "response_format: no such keyword")
    mesh.triton.answer = Answer([], failure=refusal)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input="x")
    assert caught.value.param == "text.format"
