"""EleutherAI's lm_eval, unmodified: through the gateway it measures what it does on the weights.

Its ``local-completions`` model sends prompts as token ids with ``echo`` and ``logprobs``; its
``hf`` model runs the checkpoint in transformers. Without echoed log-probabilities it would not
fail but score by chance, so single log-likelihoods are compared, not the metrics alone.

lm_eval 0.4.13 cannot be in the mesh's environment: by way of typepy it needs python-dateutil
below 3, and the lock has 4. So it is in one of its own, and these tests are skipped without it.
"""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gateway_mesh import Mesh

from tests.engine.served import is_installed
from tests.engine.tiny_model import TEXT, TinyModel

LM_EVAL_PYTHON = Path(
    os.environ.get("MILLRACE_LM_EVAL_PYTHON")
    or Path(__file__).parents[2] / ".venv-lm-eval" / "bin" / "python"
)
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
METRIC_TOLERANCE = 0.01
TOKEN_TOLERANCE = 1e-3  # nats
# A log-likelihood is a sum over some tens of tokens.
SUM_TOLERANCE = 0.02
QUESTIONS = 24
DOCUMENTS = 6
CHOICE = {
    "task": "millrace_choice",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
PERPLEXITY = {
    "task": "millrace_perplexity",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
}


@dataclass(frozen=True)
class Measured:
    """One run: metrics by task and name, and the log-likelihoods of its requests, by task."""

    metrics: dict[tuple[str, str], float]
    loglikelihoods: dict[str, list[float]]


def disagreements(first: Measured, second: Measured) -> list[str]:
    """What two runs on the same weights differ in; all that they should not."""
    found = [
        f"{name}: {first.metrics[name]} and {second.metrics[name]}"
        for name in first.metrics.keys() | second.metrics.keys()
        if not abs(first.metrics[name] - second.metrics[name]) <= METRIC_TOLERANCE
    ]
    for task in first.loglikelihoods.keys() | second.loglikelihoods.keys():
        pairs = zip(first.loglikelihoods[task], second.loglikelihoods[task], strict=True)
        found += [
            f"{task}, request {number}: {one} and {other}"
            for number, (one, other) in enumerate(pairs)
            if not abs(one - other) <= SUM_TOLERANCE
        ]
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two tasks, made from Python's documentation."""
    if not LM_EVAL_PYTHON.exists():
        pytest.skip("no lm_eval in .venv-lm-eval, and MILLRACE_LM_EVAL_PYTHON names no other")
    folder = tmp_path_factory.mktemp("tasks")
    paragraphs = [part for part in TEXT.split("\n\n") if 150 < len(part) < 600]
    chosen = random.Random(0).sample(paragraphs, QUESTIONS + DOCUMENTS)
    questions = [_question(chosen[number], number) for number in range(QUESTIONS)]
    documents = [{"text": paragraph} for paragraph in chosen[QUESTIONS:]]
    for task, rows in ((CHOICE, questions), (PERPLEXITY, documents)):
        data = folder / f"{task['task']}.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, **files}))
    return folder


def _question(paragraph: str, number: int) -> dict[str, Any]:
    """Which of four ends a paragraph: its own, or that with its characters in disorder."""
    end = paragraph[80:130]
    ends = ["".join(random.Random(step).sample(end, len(end))) for step in range(4)]
    ends[number % 4] = end
    return {"context": paragraph[:80], "choices": ends, "answer": number % 4}


def evaluate(tasks: Path, output: Path, model: str, arguments: dict[str, Any]) -> Measured:
    """Run the ``lm_eval`` command."""
    told = ",".join(f"{key}={value}" for key, value in arguments.items())
    command = [LM_EVAL_PYTHON, "-m", "lm_eval", "run", "--model", model, "--model_args", told]
    command += ["--tasks", f"{CHOICE['task']},{PERPLEXITY['task']}", "--include_path", str(tasks)]
    command += ["--output_path", str(output), "--log_samples", "--device", "cpu"]
    environment = {
        **os.environ,
        "HF_HOME": str(output / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENAI_API_KEY": str(arguments.get("auth_token", "")),
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return _measured(output)


def _measured(output: Path) -> Measured:
    [results] = output.rglob("results_*.json")
    metrics = {
        (task, name.partition(",")[0]): value
        for task, values in json.loads(results.read_text())["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }
    loglikelihoods = {}
    for task in (CHOICE["task"], PERPLEXITY["task"]):
        [samples] = output.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        lines.sort(key=lambda line: line["doc_id"])
        loglikelihoods[str(task)] = [value for line in lines for value in _values(line["resps"])]
    return Measured(metrics, loglikelihoods)


def _values(responses: Any) -> Iterator[float]:
    """The first number of each response: [[-1.5, False]] of a choice, [-1.5] of a document."""
    for response in responses:
        first = response[0] if isinstance(response, list) else response
        yield float(first[0] if isinstance(first, list) else first)


@pytest.fixture(scope="module")
def through_gateway(
    tasks: Path, gateway: Mesh, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    arguments = {
        "model": "tiny",
        "base_url": f"{gateway.url}/v1/completions",
        "tokenizer_backend": "remote",
        "auth_token": gateway.member_secret,
        "max_length": 512,
        "num_concurrent": 4,
    }
    return evaluate(tasks, tmp_path_factory.mktemp("served"), "local-completions", arguments)


@pytest.fixture(scope="module")
def on_the_weights(
    tasks: Path, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    arguments = {"pretrained": tiny.model, "dtype": "float32"}
    return evaluate(tasks, tmp_path_factory.mktemp("weights"), "hf", arguments)


def test_it_measures_the_same(through_gateway: Measured, on_the_weights: Measured) -> None:
    assert {name for _, name in on_the_weights.metrics} >= {"acc", "acc_norm", "bits_per_byte"}
    assert len(on_the_weights.loglikelihoods[str(CHOICE["task"])]) == 4 * QUESTIONS
    assert len(on_the_weights.loglikelihoods[str(PERPLEXITY["task"])]) == DOCUMENTS
    assert disagreements(through_gateway, on_the_weights) == []


def test_the_model_knows_more_than_chance(on_the_weights: Measured) -> None:
    # Else a gateway that tells nothing would be as good as one that tells the truth.
    assert on_the_weights.metrics[str(CHOICE["task"]), "acc"] > 0.6


@pytest.mark.parametrize("task", [CHOICE["task"], PERPLEXITY["task"]])
def test_one_wrong_logprob_would_be_seen(
    through_gateway: Measured, on_the_weights: Measured, task: str
) -> None:
    for number in range(len(through_gateway.loglikelihoods[task])):
        planted = [*through_gateway.loglikelihoods[task]]
        planted[number] -= 0.05
        wrong = Measured(through_gateway.metrics, {**through_gateway.loglikelihoods, task: planted})
        assert f"{task}, request {number}" in disagreements(wrong, on_the_weights)[0]


def test_every_echoed_token_is_that_of_transformers(gateway: Mesh, tiny: TinyModel) -> None:
    tokens = tiny.encode(TEXT[3000:4200])[:300]
    choice = (
        gateway.openai()
        .completions.create(
            model="tiny",
            prompt=tokens,
            max_tokens=1,
            echo=True,
            logprobs=1,
            temperature=0,
            seed=1234,
        )
        .choices[0]
    )
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    told = choice.logprobs.token_logprobs
    assert len(told) == len(tokens) + 1 and told[0] is None
    rows = tiny.logprobs(tokens)
    expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=False)]
    assert told[1:-1] == pytest.approx(expected, abs=TOKEN_TOLERANCE)
    assert told[-1] == pytest.approx(float(np.max(rows[-1])), abs=TOKEN_TOLERANCE)
