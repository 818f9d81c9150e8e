"""Vectors from the engine on real Triton through the gateway, held against transformers'."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
import pytest
import torch
import tritonclient.grpc as triton
from gateway_mesh import Mesh
from transformers import AutoModelForCausalLM

from tests.engine.served import MODEL, ServedEngine, is_installed
from tests.engine.tiny_model import CONTEXT_TOKENS, TEXT, TinyModel

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
SIZE = 64
TOLERANCE = 1e-4
# Of one word to many more tokens than are computed at once.
TEXTS = ["x", "The import statement", *re.split(r"\n\n", TEXT[:3000])[:20], TEXT[:900]]


def expected(tiny: TinyModel, inputs: Sequence[list[int]], dimensions: int = SIZE) -> np.ndarray:
    """What transformers makes of each input alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    rows = []
    for tokens in inputs:
        with torch.inference_mode():
            states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1]
        rows.append(states[0].mean(0)[:dimensions].numpy())
    found = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def vectors(answer: Any) -> np.ndarray:
    return np.array([one.embedding for one in answer.data])


@pytest.fixture
def client(gateway: Mesh) -> openai.OpenAI:
    return gateway.openai()


def test_many_texts_are_those_of_transformers(client: openai.OpenAI, tiny: TinyModel) -> None:
    tokens = [tiny.encode(text) for text in TEXTS]
    assert 256 < max(map(len, tokens)) <= CONTEXT_TOKENS and len(TEXTS) > 10
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    found = vectors(answer)
    assert found.shape == (len(TEXTS), SIZE)
    assert found == pytest.approx(expected(tiny, tokens), abs=TOLERANCE)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_tokens_are_as_the_text_they_spell(
    client: openai.OpenAI, tiny: TinyModel, encoding_format: Any
) -> None:
    asked: dict[str, Any] = {"model": "tiny", "encoding_format": encoding_format}
    tokens = [tiny.encode(text) for text in TEXTS[:3]]
    by_text = client.embeddings.create(input=TEXTS[:3], **asked)
    by_tokens = client.embeddings.create(input=tokens, **asked)
    alone = client.embeddings.create(input=tokens[1], **asked)
    assert by_tokens.usage == by_text.usage
    if encoding_format == "base64":  # which the client leaves to who asks for it
        assert [one.embedding for one in by_text.data] == [one.embedding for one in by_tokens.data]
        return
    assert (vectors(by_text) == vectors(by_tokens)).all()
    assert vectors(alone)[0] == pytest.approx(vectors(by_text)[1], abs=1e-5)


def test_equal_texts_are_alike_and_others_less(client: openai.OpenAI) -> None:
    texts = ["The import statement", "The import statement", "xyz " * 30]
    first, second, other = vectors(client.embeddings.create(model="tiny", input=texts))
    assert first @ second == pytest.approx(1, abs=1e-5)
    assert first @ other < 0.99


def test_fewer_dimensions_are_the_first_ones(client: openai.OpenAI, tiny: TinyModel) -> None:
    answer = client.embeddings.create(model="tiny", input=TEXTS[:4], dimensions=7)
    tokens = [tiny.encode(text) for text in TEXTS[:4]]
    assert vectors(answer) == pytest.approx(expected(tiny, tokens, 7), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"dimensions": SIZE + 1}, "dimensions", "1 to 64"),
        ({"input": ["x", "word " * 600]}, "input", f"input 1 .* the context is {CONTEXT_TOKENS}"),
        ({"input": [[7] * (CONTEXT_TOKENS + 1)]}, "input", f"the context is {CONTEXT_TOKENS}"),
        ({"input": [100_000]}, "input", "outside the vocabulary"),
        ({"input": [[7] * 500] * 601}, "input", "at most 300000"),
    ],
)
def test_a_mistake_is_named(
    client: openai.OpenAI, change: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "x", **change})
    assert caught.value.param == param


def test_an_input_may_fill_the_context(client: openai.OpenAI, tiny: TinyModel) -> None:
    full = tiny.encode(TEXT[:3000])[:CONTEXT_TOKENS]
    answer = client.embeddings.create(model="tiny", input=full)
    assert vectors(answer) == pytest.approx(expected(tiny, [full]), abs=TOLERANCE)
    assert answer.usage.total_tokens == CONTEXT_TOKENS


def test_scoring_is_as_exact_as_before_and_at_the_same_time(
    client: openai.OpenAI, engine: ServedEngine, tiny: TinyModel
) -> None:
    tokens = tiny.encode(TEXT[:1200])[:300]
    asked = [engine.begin(tokens, max_tokens=0, prompt_logprobs=True) for _ in range(4)]
    client.embeddings.create(model="tiny", input=TEXTS)
    answers = [one.answer().prompt_logprobs for one in asked]
    for one in asked:
        one.close()
    rows = tiny.logprobs(tokens)
    wanted = [rows[n, token] for n, token in enumerate(tokens[1:])]
    for answer in answers:
        assert [entry["logprob"] for entry in answer[1:]] == pytest.approx(wanted, abs=1e-3)


def test_large_requests_do_not_keep_a_small_one_waiting(engine: ServedEngine) -> None:
    sampling = {"embed": {"sizes": [500] * 400}}
    large = [engine.begin([7] * 200_000, **sampling) for _ in range(12)]
    large[0].next()
    small = engine.begin("x", embed=True)
    response = small.next()
    assert response.as_numpy("embedding").shape == (1, SIZE)
    assert response.as_numpy("finish_reason")[0] == b"stop"
    assert all(one.unread < 400 - 1 for one in large), "none has come to its end"
    for one in (small, *large):
        one.close()


def test_the_inference_protocol_says_and_gives_them(gateway: Mesh, tiny: TinyModel) -> None:
    client = gateway.http()
    said = client.get("/v2/models/tiny").json()["outputs"]
    assert {"name": "embedding", "datatype": "FP32", "shape": [-1, -1]} in said
    texts = ["x", "word " * 200]
    body = {"prompt": "".join(texts), "sampling": json.dumps({"embed": {"sizes": [1, 1000]}})}
    answer = client.post("/v2/models/tiny/generate", json=body).json()
    assert answer["embedding_index"] == [0, 1]
    found = np.reshape(answer["embedding"], (2, SIZE))
    tokens = [tiny.encode(text) for text in texts]
    assert found == pytest.approx(expected(tiny, tokens), abs=TOLERANCE)
    assert answer["prompt_token_count"] == sum(map(len, tokens))


def test_it_is_not_had_with_what_makes_text(engine: ServedEngine) -> None:
    answer = engine.ask("x", embed=True, temperature=0)
    assert "temperature cannot be had together with embed" in answer.error
    assert "sizes" in engine.ask("abc", embed={"sizes": [2]}).error
    assert triton.InferenceServerClient(engine.address).is_model_ready(MODEL)
