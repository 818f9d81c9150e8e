"""The engine for checkpoints on real Triton, held against transformers' own ``generate``."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import Mesh, route_to
from tests.engine.served import ServedEngine, is_installed
from tests.engine.tiny_model import TEXT, TinyModel

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
TOLERANCE = 1e-3  # nats
PROMPT = "The import statement"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """The checkpoint itself is what is served; nothing was converted."""
    served = ServedEngine(tmp_path_factory.mktemp("checkpoint"), tiny.model)
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def mesh(
    tiny: TinyModel, checkpoint: ServedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    """The real gateway before this engine."""
    mesh = Mesh(tmp_path_factory.mktemp("gateway"))
    mesh.start()
    try:
        mesh.serve_routes([route_to(mesh, tiny, checkpoint)])
        yield mesh
    finally:
        mesh.stop()


def generated(tiny: TinyModel, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers generates greedily, past any end of text."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    asked = torch.tensor([list(prompt)])
    whole = model.generate(asked, max_new_tokens=count, do_sample=False, eos_token_id=None)
    found: list[int] = whole[0][len(prompt) :].tolist()
    return found


@pytest.mark.parametrize("prompt", [PROMPT, "x", TEXT[:1500]])
def test_greedy_tokens_are_those_of_generate(
    checkpoint: ServedEngine, tiny: TinyModel, prompt: str
) -> None:
    tokens = tiny.encode(prompt)[:400]
    answer = checkpoint.ask(tokens, **GREEDY, max_tokens=40, logprobs=0)
    assert (answer.token_count, answer.finish_reason) == (40, "length")
    assert answer.prompt_token_count == len(tokens)
    assert answer.tokens == generated(tiny, tokens, 40)


def test_streams_side_by_side_are_as_each_alone(checkpoint: ServedEngine) -> None:
    prompts = [PROMPT, TEXT[:900], "class", TEXT[3000:3500]]
    alone = [checkpoint.ask(prompt, **GREEDY, max_tokens=120).text for prompt in prompts]
    asked = [checkpoint.begin(prompt, **GREEDY, max_tokens=120) for prompt in prompts]
    answers = [one.answer() for one in asked]
    for one in asked:
        one.close()
    assert [answer.text for answer in answers] == alone
    assert all(len(answer.pieces) > 1 for answer in answers)


def test_an_answer_that_is_not_streamed_comes_whole(checkpoint: ServedEngine) -> None:
    streamed = checkpoint.ask(PROMPT, **GREEDY, max_tokens=24)
    whole = checkpoint.ask(PROMPT, **GREEDY, max_tokens=24, stream=False)
    assert (whole.text, whole.token_count) == (streamed.text, 24)
    assert len([piece for piece in whole.pieces if piece]) <= len(streamed.pieces)


def test_a_stop_string_ends_the_answer_and_is_not_in_it(checkpoint: ServedEngine) -> None:
    plain = checkpoint.ask(PROMPT, **GREEDY, max_tokens=40)
    stop = plain.text[5:9]
    stopped = checkpoint.ask(PROMPT, **GREEDY, max_tokens=40, stop=[stop, "never there"])
    assert stopped.finish_reason == "stop"
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.token_count < plain.token_count


def test_an_end_of_text_token_ends_the_answer(checkpoint: ServedEngine) -> None:
    answer = checkpoint.ask(PROMPT, temperature=0, max_tokens=8, logit_bias={"2": 100})
    assert (answer.finish_reason, answer.token_count, answer.text) == ("stop", 1, "")


def test_a_seed_repeats_an_answer_whatever_runs_beside_it(checkpoint: ServedEngine) -> None:
    sampling = {"temperature": 1.2, "top_p": 0.95, "top_k": 100, "max_tokens": 30}
    alone = checkpoint.ask(PROMPT, seed=7, **sampling).text
    asked = [checkpoint.begin(PROMPT, seed=seed, **sampling) for seed in (7, 8, 7, 9)]
    texts = [one.answer().text for one in asked]
    for one in asked:
        one.close()
    assert texts[0] == texts[2] == alone
    assert len({*texts}) == 3


def test_logprobs_are_those_of_transformers(checkpoint: ServedEngine, tiny: TinyModel) -> None:
    answer = checkpoint.ask(PROMPT, seed=3, max_tokens=16, logprobs=4, frequency_penalty=1.5)
    prompt = tiny.encode(PROMPT)
    rows = tiny.logprobs(prompt + answer.tokens)[len(prompt) - 1 : -1]
    for entry, row in zip(answer.logprobs, rows, strict=True):
        assert entry["logprob"] == pytest.approx(row[entry["id"]], abs=TOLERANCE)
        told = [one["logprob"] for one in entry["top"]]
        assert told == pytest.approx(np.sort(row)[:-5:-1], abs=TOLERANCE)


def test_when_all_clients_go_away_the_next_is_answered(checkpoint: ServedEngine) -> None:
    long = [checkpoint.begin(PROMPT, **GREEDY, max_tokens=500) for _ in range(8)]
    for one in long:
        one.next()
        one.close()
    assert checkpoint.ask(PROMPT, **GREEDY, max_tokens=20).token_count == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("prompt_logprobs", True),
        ("temperature", -1),
        ("top_p", 1.5),
        ("top_k", -1),
        ("presence_penalty", 3),
        ("frequency_penalty", -2.5),
        ("n", 2),
        ("best_of", 2),
        ("embed", True),
        ("logit_bias", {"9999": 1}),
        ("max_tokens", 0),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(
    checkpoint: ServedEngine, name: str, value: Any
) -> None:
    answer = checkpoint.ask(PROMPT, **{"max_tokens": 4, name: value})
    assert name in answer.error and not answer.pieces


@pytest.mark.parametrize("prompt", ["", [9999], [7] * 513])
def test_a_prompt_that_cannot_be_is_refused(checkpoint: ServedEngine, prompt: Any) -> None:
    assert "prompt" in checkpoint.ask(prompt, max_tokens=4).error


@pytest.mark.parametrize("streams", [True, False])
def test_the_gateway_cannot_tell_which_engine_answers(mesh: Mesh, streams: bool) -> None:
    client = mesh.openai()
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12}
    texts = dict.fromkeys(range(3), "")
    created: Any = client.completions.create(**asked, n=3, seed=5, stream=streams)
    for chunk in created if streams else [created]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    alone = [client.completions.create(**asked, seed=5 + n).choices[0].text for n in range(3)]
    assert list(texts.values()) == alone


def test_the_gateway_names_what_the_engine_refuses(mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        mesh.openai().completions.create(model="tiny", prompt=PROMPT, echo=True, logprobs=1)
    assert (error.value.param, error.value.status_code) == ("echo", 400)
