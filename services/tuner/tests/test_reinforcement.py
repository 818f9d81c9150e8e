"""GRPO and RLOO, in this process, on rewards that a policy of any kind can find."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_builders import tasks, tokenizer, write_jsonl, write_policy

from millrace_examples.kinds import Task
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.graders.grader import Grader
from millrace_tuner.graders.grades import Sample
from millrace_tuner.jobs import checkpoint, grading, prompts, reinforcement, tool_calls, validate
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec, load_codec
from millrace_tuner.jobs.policy import PromptSampler
from millrace_tuner.jobs.prompts import Material
from millrace_tuner.jobs.reinforcement_objective import ReinforcementObjective
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters, Reinforcement

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

ANSWER_TOKENS = 8
CONTAINS_LETTER = {
    "type": "string_check",
    "name": "letter",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.letter }}",
    "operation": "ilike",
}
FAILS = {**CONTAINS_LETTER, "input": "{{ item.nothing }}"}
METHOD = Reinforcement(
    json.dumps(CONTAINS_LETTER),
    samples_per_prompt=8,
    maximum_completion_tokens=ANSWER_TOKENS,
    evaluation_samples=8,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reinforcement")
    write_policy(folder / "base")
    write_jsonl(folder / "train.jsonl", tasks(26))
    return folder


def spec_of(base: Path, output: Path, **changes: Any) -> Spec:
    from millrace_runtime import manifest

    _, digest = manifest.read(base / "base")
    fields = {
        "job": "ftjob-1",
        "model": "ft:demo:default::abc123",
        "base_version": "demo@1",
        "base_checkpoint_path": base / "base",
        "base_checkpoint_digest": digest,
        "training_file_path": base / "train.jsonl",
        "training_file_sha256": manifest.sha256_file(base / "train.jsonl"),
        "output_directory": output,
        "method": METHOD,
        "hyperparameters": Hyperparameters(1, 8, 1.0, precision="float32"),
        "learning_rate": 2e-2,
        "adapter": Adapter(rank=8, alpha=16),
        "seed": 7,
        "threads": 1,
        **changes,
    }
    return Spec(**fields)


class StoppedAt(Cancellation):
    """Asked to stop when the job reports a step, as SIGTERM would between two of them."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


class Heard(Reporter):
    """What the job says; tells ``cancellation`` when its step is done."""

    def __init__(self, cancellation: Cancellation) -> None:
        super().__init__(io.StringIO())
        self.cancellation = cancellation
        self.steps: list[dict[str, Any]] = []

    def progress(self, phase: str, completed: int, total: int, metrics: Any = None) -> None:
        if phase == "train":
            self.steps.append({"step": completed, **(metrics or {})})
        if isinstance(self.cancellation, StoppedAt) and completed == self.cancellation.step:
            self.cancellation.requested = True


def train(spec: Spec, cancellation: Cancellation | None = None) -> list[dict[str, Any]]:
    """Do the job; what it said of its steps."""
    spec.output_directory.mkdir(exist_ok=True)
    cancellation = cancellation or Cancellation()
    reporter = Heard(cancellation)
    reinforcement.learn(spec, reporter, cancellation)
    return reporter.steps


def committed(spec: Spec) -> list[checkpoint.Committed]:
    return checkpoint.checkpoints(spec.output_directory, spec.digest)


def lines_of(spec: Spec) -> list[dict[str, Any]]:
    text = (spec.output_directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_policy_learns_what_is_rewarded(base: Path, tmp_path: Path, algorithm: str) -> None:
    method = replace(METHOD, algorithm=algorithm, beta=0.01, evaluation_interval=3)
    spec = spec_of(
        base,
        tmp_path / "out",
        method=method,
        hyperparameters=Hyperparameters(3, 8, 1.0, precision="float32"),
    )
    steps = train(spec)
    last = committed(spec)[-1].metadata
    assert last["base_valid"]["valid_reward_mean"] < 0.3
    assert last["valid"]["valid_reward_mean"] > 0.8
    assert last["valid"]["valid_grader_error_rate"] == 0
    assert [step["step"] for step in steps] == list(range(1, 13))  # 25 prompts, 8 a step
    assert {"train_reward_mean", "train_reward_std", "train_kl"} <= set(steps[0])
    assert steps[-1]["train_reward_mean"] > steps[0]["train_reward_mean"] + 0.5
    assert 1 <= steps[0]["train_mean_completion_tokens"] <= ANSWER_TOKENS
    assert steps[0]["train_kl"] == pytest.approx(0, abs=1e-5)  # the adapter says nothing yet
    measured = [line["step"] for line in lines_of(spec) if "valid_reward_mean" in line]
    assert measured == [3, 4, 6, 8, 9, 12]
    tokens = [c.metadata["trained_tokens"] for c in committed(spec)]
    longest = len(tokenizer()(tasks(1)[0]["messages"][0]["content"])["input_ids"]) + 40
    assert 0 < tokens[0] < tokens[-1] < 12 * 8 * 8 * (longest + ANSWER_TOKENS)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_stopped_and_started_again_it_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, kind: str
) -> None:
    """With dropout and a divergence from the base, which is read anew when all is trained."""
    adapter = Adapter(kind=kind, rank=4, alpha=8, dropout=0.1 if kind == "lora" else 0.0)  # type: ignore[arg-type]
    method = replace(METHOD, beta=0.05, evaluation_interval=1)
    changes = {"adapter": adapter, "method": method, "learning_rate": 1e-3}
    whole = spec_of(base, tmp_path / "whole", **changes)
    train(whole)
    stopped = spec_of(base, tmp_path / "stopped", **changes)
    with pytest.raises(JobError, match="stopped on request"):
        train(stopped, StoppedAt(2))
    assert not committed(stopped)
    train(stopped)
    assert [c.digest for c in committed(stopped)] == [c.digest for c in committed(whole)]
    assert lines_of(stopped)[-1] == lines_of(whole)[-1]


def test_the_checkpoint_is_base_and_adapter_with_the_policys_own_answers(
    base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    spec = spec_of(base, tmp_path / "out", method=replace(METHOD, evaluation_samples=1))
    train(spec)
    path = committed(spec)[-1].path
    merged = AutoModelForCausalLM.from_pretrained(path / "model").eval()
    under = AutoModelForCausalLM.from_pretrained(base / "base/model")
    token_ids = torch.arange(3, 83).view(4, 20)  # (batch, tokens)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(under, path / "adapter").eval()(token_ids).logits
        torch.testing.assert_close(merged(token_ids).logits, adapted, rtol=1e-4, atol=1e-4)

    stream = np.load(path / "evaluation/heldout-00000.npy").tolist()
    text = tokenizer().decode(stream)
    opening = "<|im_start|>assistant\n"
    assert stream[-1] == tokenizer().eos_token_id
    asked = text[: text.index(opening) + len(opening)]
    ids = torch.tensor([tokenizer()(asked, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        first = int(merged(ids).logits[0, -1].argmax())
    assert stream[ids.shape[1]] == first


def objective_of(base: Path, method: Reinforcement = METHOD) -> tuple[ReinforcementObjective, Any]:
    codec = load_codec(base / "base/model")
    made = [prompts.encode(task, codec) for task in some_tasks()]
    material = Material(made[2:], made[:2], "split", 0)
    grader = Grader(grading.parse(method.grader))
    return ReinforcementObjective(method, codec, material, grading.Grading(grader)), codec


def some_tasks() -> list[Task]:
    made = []
    for line, raw in enumerate(tasks(20), start=1):
        messages = tuple(raw.pop("messages"))
        made.append(Task(line, messages, (), raw))
    return made


def test_the_trainer_asks_with_the_ids_that_serving_computes(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, tmp_path / "out")
    spec.output_directory.mkdir()
    objective, codec = objective_of(base)
    run = Run(spec, objective, codec.tokenizer, Reporter(io.StringIO()), Cancellation())
    row = run.trainer.train_dataset[0]
    (asked,), _, _ = run.trainer._tokenize_prompts([row["prompt"]])  # type: ignore[attr-defined]
    served = tokenizer().apply_chat_template(
        list(some_tasks()[2].messages), add_generation_prompt=True, tokenize=True
    )["input_ids"]
    assert asked == list(served)
    stops = {tokenizer().convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    assert set(run.trainer.eos_token_ids) == stops  # type: ignore[attr-defined]


def test_every_batch_is_full_and_every_prompt_comes() -> None:
    sampler = PromptSampler([5, 3, 4, 9, 1], 2, 0, answers=3, repeats=2)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler) == 36
        assert set(found) == set(range(5))
        for start in range(0, 36, 12):
            batch = found[start : start + 6]
            assert batch == found[start + 6 : start + 12]
            assert batch[:3] == [batch[0]] * 3
    few = PromptSampler([5], 4, 0, answers=1, repeats=1)
    assert list(few) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "reason", "named"),
    [
        ({"grader": "{}"}, "INVALID_GRADER", "grader.type"),
        ({"grader": "{"}, "INVALID_GRADER", "correct the grader"),
        ({"grader": json.dumps(FAILS)}, "INVALID_EXAMPLE", "line 1: item.nothing"),
        ({"maximum_completion_tokens": 512}, "CONTEXT_TOO_SHORT", "maximum_completion_tokens"),
        ({"maximum_completion_tokens": 505}, "NOTHING_TO_LEARN", "7 tokens"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(
    base: Path, tmp_path: Path, changes: dict[str, Any], reason: str, named: str
) -> None:
    with pytest.raises(JobError) as caught:
        train(spec_of(base, tmp_path / "out", method=replace(METHOD, **changes)))
    assert caught.value.reason == reason
    assert named in str(caught.value)


class Fixed:
    """Grades as it is told; stands for a ``Grader``."""

    def __init__(self, errors: Sequence[Any]) -> None:
        self.errors = list(errors)

    def grade(self, samples: Sequence[Sample], item: Any) -> list[Any]:
        from millrace_tuner.graders.grades import Grade

        return [Grade("g", "t", 0.5, self.errors.pop(0)) for _ in samples]


def test_what_cannot_be_graded_is_worth_nothing_and_is_counted() -> None:
    from millrace_tuner.graders.grades import Errors

    fine, broken = Errors(), Errors(model_grader_server_error_details="503 from the judge")
    unparsed = Errors(sample_parse_error=True)
    asked = [prompts.encode(task, codec()) for task in some_tasks()[:2]]
    at_work = grading.Grading(Fixed([fine, broken, *[broken] * 4, unparsed, broken]))  # type: ignore[arg-type]
    found = at_work.grade(asked, ["a", "b"])
    assert (found.rewards, found.error_rate) == ([0.5, 0.0], 0.5)
    for _ in range(2):
        assert at_work.grade(asked, ["a", "b"]).error_rate == 1
    assert at_work.grade(asked, ["a", "b"]).error_rate == 1  # an answer, not the grader

    at_work = grading.Grading(Fixed([broken] * 6))  # type: ignore[arg-type]
    at_work.grade(asked, ["a", "b"])
    at_work.grade(asked, ["a", "b"])
    with pytest.raises(JobError, match="503 from the judge") as caught:
        at_work.grade(asked, ["a", "b"])
    assert caught.value.reason == "GRADER_FAILED"


def codec() -> ChatCodec:
    return ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))


def test_a_grader_that_fails_ends_the_job_with_its_own_words(base: Path, tmp_path: Path) -> None:
    too_long = {
        "type": "multi",
        "name": "ratio",
        "graders": {"letter": CONTAINS_LETTER},
        "calculate_output": "1 / (letter - letter)",
    }
    with pytest.raises(JobError) as caught:
        train(spec_of(base, tmp_path / "out", method=replace(METHOD, grader=json.dumps(too_long))))
    assert caught.value.reason == "GRADER_FAILED"
    assert "zero" in str(caught.value)


def test_a_judge_must_be_there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_TUNER_JUDGE_BASE_URL", raising=False)
    judged = {
        "type": "score_model",
        "name": "judge",
        "model": "demo",
        "input": [{"role": "user", "content": "Rate {{ sample.output_text }}"}],
    }
    with pytest.raises(JobError) as caught:
        train(spec_of(base, tmp_path / "out", method=replace(METHOD, grader=json.dumps(judged))))
    assert caught.value.reason == "JUDGE_NOT_CONFIGURED"

    monkeypatch.setenv("MILLRACE_TUNER_JUDGE_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("MILLRACE_TUNER_JUDGE_TENANT", "mill")
    method = replace(METHOD, grader=json.dumps(judged))
    specification = grading.parse(method.grader)
    for tenant in ("other", ""):
        with pytest.raises(JobError) as caught:
            reinforcement.open_grader(spec_of(base, tmp_path, tenant=tenant), specification)
        assert caught.value.reason == "JUDGE_OF_ANOTHER_TENANT"
    reinforcement.open_grader(spec_of(base, tmp_path, tenant="mill"), specification).close()


def test_calls_of_functions_are_told_from_text() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    found = tool_calls.sample(f"Well. {call}", {"add"})
    assert found.output_text == "Well."
    assert found.output_tools[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    for text in (call.replace("add", "sub"), "<tool_call>[]</tool_call>", "<tool_call>{"):
        other = tool_calls.sample(text, {"add"})
        assert (other.output_text, list(other.output_tools)) == (text, [])
    assert tool_calls.sample(call, ()).output_text == call


def test_the_files_and_the_grader_are_checked_before_training(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, tmp_path / "out")
    counted = validate.COUNT["reinforcement"](spec)
    assert (counted.training_examples, counted.skipped_examples) == (26, 0)
    prompt = tasks(1)[0]["messages"]
    served = tokenizer().apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
    assert counted.longest_tokens >= len(served["input_ids"])
    with pytest.raises(JobError, match=r"line 1: item\.nothing"):
        method = replace(METHOD, grader=json.dumps(FAILS))
        validate.COUNT["reinforcement"](spec.model_copy(update={"method": method}))
    source = {"type": "python", "name": "own", "source": "def grade(sample, item"}
    with pytest.raises(JobError) as caught:
        method = replace(METHOD, grader=json.dumps(source))
        validate.COUNT["reinforcement"](spec.model_copy(update={"method": method}))
    assert caught.value.reason in ("INVALID_GRADER", "GRADER_FAILED")


def test_answers_are_written_in_the_precision_of_training(base: Path, tmp_path: Path) -> None:
    given = Hyperparameters(1, 8, 1.0, precision="bfloat16")
    spec = spec_of(base, tmp_path / "out", hyperparameters=given, method=METHOD)
    steps = train(spec)
    assert len(steps) == 4
    assert committed(spec)[-1].metadata["config"]["precision"] == "bfloat16"
