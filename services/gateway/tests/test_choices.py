"""Several choices, log probabilities, echo and forms, through the unmodified ``openai`` package."""

import json
from typing import Any

import grpc
import openai
import pytest
from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace_testkit.servers import wait_until

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def by_seed(request: dict[str, Any]) -> Answer:
    """An answer that tells which choice it is for, and how long it is from that too."""
    seed = request["sampling"]["seed"]
    return Answer([f"{seed}-{number} " for number in range(1 + seed % 3)])


def spelled(seed: int) -> str:
    return "".join(by_seed({"sampling": {"seed": seed}}).pieces)


def test_several_choices_differ_by_their_seeds(mesh: Mesh) -> None:
    mesh.triton.answer_to = by_seed
    answer = mesh.openai().chat.completions.create(**CHAT, n=4, seed=10)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.message.content for choice in answer.choices] == [
        spelled(seed) for seed in (10, 11, 12, 13)
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 7, "one prompt, however many answers"
    assert answer.usage.completion_tokens == 2 + 3 + 1 + 2
    assert len({request["id"] for request in mesh.triton.requests}) == 4
    assert {request["version"] for request in mesh.triton.requests} == {"1"}


def test_choices_without_a_seed_have_none(mesh: Mesh) -> None:
    answer = mesh.openai().completions.create(model="demo", prompt="x", n=2, best_of=2)
    assert len(answer.choices) == 2
    assert all("seed" not in request["sampling"] for request in mesh.triton.requests)


def test_several_choices_in_one_stream(mesh: Mesh) -> None:
    mesh.triton.answer_to = by_seed
    stream = mesh.openai().chat.completions.create(
        **CHAT, n=3, seed=0, stream=True, stream_options={"include_usage": True}
    )
    texts, ends = {0: "", 1: "", 2: ""}, []
    *chunks, last = list(stream)
    for chunk in chunks:
        (choice,) = chunk.choices
        assert choice.index not in ends, "nothing follows a choice's end"
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == {seed: spelled(seed) for seed in range(3)}
    assert sorted(ends) == [0, 1, 2]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 6)


@pytest.mark.parametrize("streams", [True, False])
def test_one_choice_that_fails_ends_all(mesh: Mesh, streams: bool) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        if request["sampling"]["seed"] == 1:
            return Answer(["a"], failure=(grpc.StatusCode.INTERNAL, "the engine died"))
        return Answer(["x"] * 1000, pause_seconds=0.02)

    mesh.triton.answer_to = answer
    with pytest.raises(openai.APIError, match="the engine died"):
        created = mesh.openai().chat.completions.create(**CHAT, n=3, seed=0, stream=streams)
        list(created)
    wait_until(lambda: mesh.triton.running == 0, 3, "the other choices are stopped")
    assert "millrace_generations_active 0.0" in mesh.http().get("/metrics").text


def test_one_choice_that_is_refused_ends_all(mesh: Mesh) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        if request["sampling"]["seed"] == 2:
            refusal = "logit_bias names the token 9, which there is not"
            return Answer([], failure=(grpc.StatusCode.INVALID_ARGUMENT, refusal))
        return Answer(["x"] * 1000, pause_seconds=0.02)

    mesh.triton.answer_to = answer
    with pytest.raises(openai.BadRequestError) as caught:
        mesh.openai().chat.completions.create(**CHAT, n=3, seed=0, logit_bias={"9": 1})
    assert caught.value.param == "logit_bias", "the engine's refusals name the parameter too"
    wait_until(lambda: mesh.triton.running == 0, 3, "the other choices are stopped")


def test_chat_logprobs(mesh: Mesh) -> None:
    mesh.triton.answer = Answer(["Hi", " 🙂", "<|im_end|>"], logprobs=[-0.125, None, -0.5])
    choice = mesh.openai().chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices[0]
    assert mesh.triton.requests[0]["sampling"]["logprobs"] == 2
    assert choice.logprobs is not None and choice.logprobs.content is not None
    first, second = choice.logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("Hi", -0.125, list(b"Hi"))
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a0", -0.25), ("a1", -0.5)]
    assert second.logprob == -9999.0, "minus infinity, which JSON cannot say"
    assert bytes(second.bytes or []).decode() == " 🙂"


def test_chat_logprobs_in_a_stream(mesh: Mesh) -> None:
    stream = mesh.openai().chat.completions.create(**CHAT, logprobs=True, n=2, stream=True)
    tokens: dict[int, list[str]] = {0: [], 1: []}
    for chunk in stream:
        (choice,) = chunk.choices
        entries = choice.logprobs.content or [] if choice.logprobs else []
        assert "".join(entry.token for entry in entries) == (choice.delta.content or "")
        tokens[choice.index] += [entry.token for entry in entries]
    assert tokens == {0: ["Hel", "lo", " 🙂"], 1: ["Hel", "lo", " 🙂"]}
    assert {request["sampling"]["logprobs"] for request in mesh.triton.requests} == {0}


def test_completion_logprobs(mesh: Mesh) -> None:
    answer = mesh.openai().completions.create(model="demo", prompt="x", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hel", "lo", " 🙂"]
    assert logprobs.token_logprobs == [-0.5, -1.0, -1.5]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1] == {"a0": -0.25, "lo": -1.0}, "and the one that was chosen"
    assert logprobs.text_offset == [0, 3, 5]


def test_completion_logprobs_in_a_stream(mesh: Mesh) -> None:
    stream = mesh.openai().completions.create(model="demo", prompt="x", logprobs=0, stream=True)
    seen = [chunk.choices[0].logprobs for chunk in stream if chunk.choices[0].logprobs]
    assert [offset for logprobs in seen for offset in logprobs.text_offset or []] == [0, 3, 5]
    assert [top for logprobs in seen for top in logprobs.top_logprobs or []] == [
        {"Hel": -0.5},
        {"lo": -1.0},
        {" 🙂": -1.5},
    ]


@pytest.mark.parametrize("streams", [True, False])
def test_echo_with_logprobs_of_token_ids(mesh: Mesh, streams: bool) -> None:
    """What lm_eval asks for: the probabilities of a text that was tokenized before."""
    body: dict[str, Any] = {
        "model": "demo",
        "prompt": [[5, 6, 7], [8]],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
        "seed": 1234,
    }
    mesh.triton.answer = Answer(["!"], finish_reason="length")
    created: Any = mesh.openai().completions.create(**body, stream=streams)
    choices = [chunk.choices[0] for chunk in created] if streams else created.choices
    first, second = sorted(choices, key=lambda choice: choice.index)
    assert first.text == "<5><6><7>!"
    assert first.logprobs.tokens == ["<5>", "<6>", "<7>", "!"]
    assert first.logprobs.token_logprobs == [None, -2.0, -3.0, -0.5]
    assert first.logprobs.top_logprobs == [
        None,
        {"a0": -0.25, "<6>": -2.0},
        {"a0": -0.25, "<7>": -3.0},
        {"a0": -0.25, "!": -0.5},
    ]
    assert first.logprobs.text_offset == [0, 3, 6, 9]
    assert second.logprobs.tokens == ["<8>", "!"]
    asked = sorted(mesh.triton.requests, key=lambda request: request["input_ids"])
    assert [request["input_ids"] for request in asked] == [[5, 6, 7], [8]]
    assert {request["sampling"]["prompt_logprobs"] for request in asked} == {True}


def test_echo_of_nothing_but_the_prompt(mesh: Mesh) -> None:
    answer = mesh.openai().completions.create(
        model="demo", prompt="one two<|im_end|>", echo=True, logprobs=0, max_tokens=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("one two<|im_end|>", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -2.0]
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    assert mesh.triton.requests[0]["sampling"] == {
        "max_tokens": 0,
        "logprobs": 0,
        "prompt_logprobs": True,
    }


def test_echo_of_a_text_asks_the_engine_for_nothing_more(mesh: Mesh) -> None:
    stream = mesh.openai().completions.create(model="demo", prompt="say: ", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "say: Hello 🙂"
    assert mesh.triton.requests[0]["sampling"] == {"max_tokens": 16}


def test_prompts_times_answers(mesh: Mesh) -> None:
    mesh.triton.answer_to = lambda request: Answer(
        [request["prompt"], str(request["sampling"]["seed"])]
    )
    answer = mesh.openai().completions.create(model="demo", prompt=["a", "b"], n=2, seed=5)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "a5"),
        (1, "a6"),
        (2, "b5"),
        (3, "b6"),
    ]
    assert answer.usage is not None and answer.usage.prompt_tokens == 14, "two prompts"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["x"] * 10, "n": 16}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ],
)
def test_completions_that_cannot_be(mesh: Mesh, change: dict[str, Any], param: str) -> None:
    response = mesh.http().post("/v1/completions", json={"model": "demo", "prompt": "x", **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"].partition("[")[0].partition(".")[0] == param
    assert mesh.triton.requests == []


def test_a_prompt_that_is_too_long_is_the_prompts_fault(mesh: Mesh) -> None:
    refusal = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt fills the context")
    mesh.triton.answer = Answer([], failure=refusal)
    for streams in (True, False):
        with pytest.raises(openai.BadRequestError) as caught:
            mesh.openai().completions.create(model="demo", prompt="x", stream=streams)
        assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


def test_forms(mesh: Mesh) -> None:
    client = mesh.openai()
    wanted: list[tuple[Any, Any]] = [
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA, "strict": True}},
            {"type": "json_schema", "schema": SCHEMA},
        ),
        ({"type": "text"}, None),
    ]
    for asked, told in wanted:
        client.chat.completions.create(**CHAT, response_format=asked, logit_bias={"7": -100})
        sampling = mesh.triton.requests[-1]["sampling"]
        assert sampling.get("response_format") == told
        assert sampling["logit_bias"] == {"7": -100}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "f"}},
            "response_format.json_schema.schema",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            "response_format.json_schema.name",
        ),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "f", "schema": json.loads('{"a":' * 300 + "1" + "}" * 300)},
            },
            "response_format.json_schema.schema",
        ),
    ],
)
def test_forms_that_cannot_be(mesh: Mesh, form: dict[str, Any], param: str) -> None:
    body = {**CHAT, "response_format": form}
    response = mesh.http().post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_an_answer_says_where_it_came_from(mesh: Mesh) -> None:
    client = mesh.openai()
    for streams in (True, False):
        for create in (
            lambda s=streams: client.chat.completions.with_raw_response.create(**CHAT, stream=s),
            lambda s=streams: client.completions.with_raw_response.create(
                model="demo", prompt="x", stream=s
            ),
        ):
            headers = create().headers
            assert headers["x-millrace-version"] == "demo@1"
            assert headers["x-request-id"].startswith("req-")
            assert len(headers["x-millrace-trace-id"]) == 32
