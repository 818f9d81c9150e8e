"""The ``openai`` package through the gateway to the engine on real Triton."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from millrace_runtime import manifest
from tests.engine.served import MODEL, ServedEngine, is_installed
from tests.engine.tiny_model import CONTEXT_TOKENS, TinyModel

# The gateway's own tests compose it; under --import-mode=importlib they are no package.
sys.path.append(str(Path(__file__).parents[2] / "services" / "gateway" / "tests"))
from gateway_mesh import Mesh

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
TOLERANCE = 1e-3  # nats
# Of answers that may be cut off: the model, hardly trained, likes the white space in JSON.
TRIES = 8
# Says little of the tools: the tiny model's context is short.
TEMPLATE = "{{ tools | length if tools else '' }}{{ messages[-1].content }}\n"
TEXT = "The import statement binds a name"


@pytest.fixture(scope="module")
def gateway(
    tiny: TinyModel, engine: ServedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    """Before the real engine, with the artifact that it serves committed in the data root."""
    mesh = Mesh(tmp_path_factory.mktemp("gateway"))
    mesh.start()
    folder = mesh.data_root / "artifact"
    temporary = manifest.temporary_sibling(folder)
    shutil.copytree(tiny.artifact, temporary, dirs_exist_ok=True)
    digest = manifest.commit(temporary, folder, "artifact", {})
    version = mesh.registry.add_version("default", 1)
    version.artifact.uri, version.artifact.digest = folder.as_uri(), digest
    version.name = "tenants/default/models/tiny/versions/1"
    mesh.registry.versions[version.name] = version
    route = mesh.route(
        "tiny",
        endpoints=[engine.address],
        artifact_digest=digest,
        chat_template=TEMPLATE,
        context_length=CONTEXT_TOKENS,
    )
    assert route.triton_model == MODEL
    mesh.serve_routes([route])
    yield mesh
    mesh.stop()


def test_the_probabilities_of_texts_as_lm_eval_asks_for_them(
    gateway: Mesh, tiny: TinyModel
) -> None:
    texts = [TEXT, "A class definition", "x"]
    client = gateway.http()
    tokenized = [
        client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
        for text in texts
    ]
    prompts = [document["tokens"] for document in tokenized]
    assert prompts == [tiny.encode(text) for text in texts]
    answer = gateway.openai().completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1
    )
    for choice, text, prompt in zip(answer.choices, texts, prompts, strict=True):
        assert choice.text.startswith(text)
        told: Any = choice.logprobs
        rows = tiny.logprobs(prompt)
        expected = [rows[n, token] for n, token in enumerate(prompt[1:])]
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert told.token_logprobs[1 : len(prompt)] == pytest.approx(expected, abs=TOLERANCE)
        best = [max(top.values()) for top in told.top_logprobs[1:]]
        assert best == pytest.approx(list(rows.max(axis=1)), abs=TOLERANCE)
        assert len(told.tokens) == len(prompt) + 1, "and one that was generated"
        whole = "".join(told.tokens)
        assert [
            whole[at:][: len(name)] for at, name in zip(told.text_offset, told.tokens, strict=True)
        ] == (told.tokens)


def test_nothing_but_the_prompt(gateway: Mesh, tiny: TinyModel) -> None:
    answer = gateway.openai().completions.create(
        model="tiny", prompt=TEXT, echo=True, logprobs=0, max_tokens=0
    )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    tokens = tiny.encode(TEXT)
    total = float(np.sum([tiny.logprobs(tokens)[n, t] for n, t in enumerate(tokens[1:])]))
    assert choice.logprobs is not None
    assert sum(choice.logprobs.token_logprobs[1:]) == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize("streams", [True, False])
def test_choices_are_those_of_their_seeds(gateway: Mesh, streams: bool) -> None:
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 12}
    texts = dict.fromkeys(range(3), "")
    created: Any = client.completions.create(**asked, n=3, seed=5, stream=streams)
    for chunk in created if streams else [created]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    alone = [client.completions.create(**asked, seed=5 + n).choices[0].text for n in range(3)]
    assert list(texts.values()) == alone
    assert len(set(alone)) > 1


def test_chat_logprobs_spell_the_answer(gateway: Mesh) -> None:
    choice = (
        gateway.openai()
        .chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": TEXT}],
            logprobs=True,
            top_logprobs=3,
            max_tokens=10,
            temperature=0,
        )
        .choices[0]
    )
    assert choice.logprobs is not None and choice.logprobs.content
    spelled = bytes(byte for token in choice.logprobs.content for byte in token.bytes or [])
    assert spelled.decode(errors="replace") == choice.message.content
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(pattern="^[A-Z][a-z]{1,8}$")
    is_wet: bool


def test_an_answer_of_a_form(gateway: Mesh) -> None:
    client = gateway.openai()
    schema = {"name": "weather", "schema": Weather.model_json_schema(), "strict": True}
    whole = 0
    for seed in range(TRIES):
        choice = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_schema", "json_schema": schema},  # type: ignore[typeddict-item]
            max_tokens=300,
            seed=seed,
            frequency_penalty=2,
        ).choices[0]
        if choice.finish_reason == "stop":
            whole += 1
            Weather.model_validate_json(choice.message.content or "")
    assert whole


def test_a_response_of_a_form(gateway: Mesh) -> None:
    form: Any = {"type": "json_schema", "name": "w", "schema": {"enum": ["wet", "dry"]}}
    response = gateway.openai().responses.create(model="tiny", input="x", text={"format": form})
    assert json.loads(response.output_text) in ("wet", "dry")


def test_a_demanded_call_is_all_that_can_be_said(gateway: Mesh) -> None:
    """The model knows nothing of calls, and wastes tokens on white space; the form is kept."""
    parameters = {
        "type": "object",
        "properties": {"wet": {"$ref": "#/$defs/Wet"}},
        "required": ["wet"],
        "additionalProperties": False,
        "$defs": {"Wet": {"enum": [True]}},
    }
    tools: Any = [
        {"type": "function", "function": {"name": "look", "parameters": parameters}},
        {"type": "function", "function": {"name": "warn", "parameters": {"enum": [{}]}}},
    ]
    look = '{"name":"look","arguments":{"wet":true}}'
    warn = '{"name":"warn","arguments":{}}'
    named = {"type": "function", "function": {"name": "look"}}
    choices: list[tuple[Any, tuple[str, ...]]] = [(named, (look,)), ("required", (look, warn))]
    for choice, allowed in choices:
        answer = gateway.openai().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            tools=tools,
            tool_choice=choice,
            max_tokens=200,
            n=4,
            seed=1,
            frequency_penalty=2,
        )
        said = [_compact(one.message) for one in answer.choices]
        assert max(map(len, said)) > len('{"name"')
        assert all(any(whole.startswith(text) for whole in allowed) for text in said), said


def _compact(message: Any) -> str:
    """What was written of a call, without white space: all of it, or as far as it came."""
    if not message.tool_calls:
        return "".join(message.content.split())
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    document = {"name": call.function.name, "arguments": arguments}
    return json.dumps(document, separators=(",", ":"))


def test_a_token_that_is_forbidden_does_not_come(gateway: Mesh, tiny: TinyModel) -> None:
    client = gateway.openai()
    asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 1, "temperature": 0}
    usual = client.completions.create(**asked).choices[0].text
    (token,) = tiny.encode(usual)
    other = client.completions.create(**asked, logit_bias={str(token): -100}).choices[0].text
    assert other != usual


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "f", "schema": {"not": {}}},
                }
            },
            "response_format",
        ),
        (
            {
                "tools": [
                    {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
    ],
)
def test_what_the_engine_cannot_do_is_named(
    gateway: Mesh, change: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], **change}
    response = gateway.http().post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
