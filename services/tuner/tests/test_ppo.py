"""PPO, in this process, on rewards whose optimum is known."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_reinforcement import Heard, StoppedAt, committed, lines_of
from tuner_builders import tasks, tokenizer, write_jsonl, write_policy

from millrace_examples.kinds import Task
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import ppo, prompts
from millrace_tuner.jobs.advantages import (
    generalized_advantages,
    policy_losses,
    token_rewards,
    value_losses,
    whitened,
)
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import load_codec
from millrace_tuner.jobs.ppo_objective import PpoObjective
from millrace_tuner.jobs.prompts import Material, Prompt
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters, ProximalPolicy

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

METHOD = ProximalPolicy("reward", maximum_completion_tokens=4, divergence_coefficient=0.001)


class EvenScorer:
    """Rewards tokens with even ids: 1 where all of a full answer are."""

    def __init__(self) -> None:
        self.scored: list[NDArray[np.int32]] = []

    def score(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        self.scored += sequences
        counts = [np.count_nonzero(answer_of(each) % 2 == 0) for each in sequences]
        return np.asarray(counts, dtype=np.float32) / METHOD.maximum_completion_tokens


def answer_of(sequence: NDArray[np.int32]) -> NDArray[np.int32]:
    """What follows the last opening of an answer."""
    start = np.flatnonzero(sequence == tokenizer().convert_tokens_to_ids("<|im_start|>"))[-1]
    opening = tokenizer()("<|im_start|>assistant\n")["input_ids"]
    return sequence[start + len(opening) :]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    write_policy(folder / "base")
    write_jsonl(folder / "train.jsonl", tasks(26))
    return folder


def spec_of(base: Path, output: Path, **changes: Any) -> Spec:
    fields = {
        "job": "ftjob-1",
        "model": "ft:demo:default::abc123",
        "base_version": "demo@1",
        "base_checkpoint_path": base / "base",
        "base_checkpoint_digest": manifest.read(base / "base")[1],
        "training_file_path": base / "train.jsonl",
        "training_file_sha256": manifest.sha256_file(base / "train.jsonl"),
        "output_directory": output,
        "method": METHOD,
        "hyperparameters": Hyperparameters(1, 8, 1.0, precision="float32"),
        "learning_rate": 1e-2,
        "adapter": Adapter(rank=8, alpha=16),
        "seed": 7,
        "threads": 1,
        **changes,
    }
    return Spec(**fields)


def encoded(base: Path, count: int) -> list[Prompt]:
    codec = load_codec(base / "base/model")
    made = []
    for line, raw in enumerate(tasks(count), start=1):
        messages = tuple(raw.pop("messages"))
        made.append(prompts.encode(Task(line, messages, (), raw), codec))
    return made


def first_token_probabilities(model: Any, prompt: Prompt) -> torch.Tensor:
    """Shape (tokens of the vocabulary,)."""
    with torch.no_grad():
        ids = torch.from_numpy(prompt.token_ids.astype(np.int64))
        return torch.softmax(model.eval()(ids[None]).logits[0, -1], dim=-1)


def run_of(
    base: Path, spec: Spec, scorer: Any, cancellation: Cancellation, prompt_count: int = 26
) -> Run:
    spec.output_directory.mkdir(exist_ok=True)
    made = encoded(base, prompt_count)
    material = Material(made[2:], made[:2], "split", 0)
    assert isinstance(spec.method, ProximalPolicy)
    codec = load_codec(base / "base/model")
    objective = PpoObjective(spec.method, codec, material, scorer)
    return Run(spec, objective, codec.tokenizer, Heard(cancellation), cancellation)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_the_policy_comes_to_say_what_is_rewarded_and_nothing_else(
    base: Path, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    spec = spec_of(
        base,
        tmp_path / "out",
        adapter=Adapter(kind=kind, rank=8, alpha=16),  # type: ignore[arg-type]
        learning_rate=1e-2 if kind == "lora" else 3e-3,
        hyperparameters=Hyperparameters(4, 40, 1.0, precision="float32"),
    )
    run = run_of(base, spec, EvenScorer(), Cancellation(), prompt_count=82)
    before = first_token_probabilities(run.model, encoded(base, 1)[0])[::2].sum()
    run.train()
    path = committed(spec)[-1].path
    merged = AutoModelForCausalLM.from_pretrained(path / "model")
    after = first_token_probabilities(merged, encoded(base, 1)[0])[::2].sum()
    assert before < 0.5
    assert after > 0.95
    assert committed(spec)[-1].metadata["valid"] == {"valid_reward_mean": 1.0}
    assert [c.step for c in committed(spec)] == [8, 16, 24, 32]  # 2 batches, 4 steps each
    steps = [line for line in lines_of(spec) if "train_loss" in line]
    assert steps[0]["train_kl"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["train_kl"] > 0.1
    assert [s["train_reward_mean"] for s in steps[:4]] == [steps[0]["train_reward_mean"]] * 4
    assert steps[0]["train_clip_fraction"] == 0
    assert steps[-1]["train_value_loss"] < max(s["train_value_loss"] for s in steps) / 2
    assert (path / "adapter").exists() == (kind == "lora")


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_stopped_amid_a_batch_and_started_again_it_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, kind: str
) -> None:
    dropout = 0.1 if kind == "lora" else 0.0
    adapter = Adapter(kind=kind, rank=4, alpha=8, dropout=dropout)  # type: ignore[arg-type]
    whole = spec_of(base, tmp_path / "whole", adapter=adapter)
    run_of(base, whole, EvenScorer(), Cancellation()).train()
    stopped = spec_of(base, tmp_path / "stopped", adapter=adapter)
    with pytest.raises(JobError, match="stopped on request"):
        run_of(base, stopped, EvenScorer(), cancellation := StoppedAt(6)).train()
    assert cancellation.requested
    run_of(base, stopped, EvenScorer(), Cancellation()).train()
    assert [c.digest for c in committed(stopped)] == [c.digest for c in committed(whole)]
    assert lines_of(stopped) == lines_of(whole)


def test_a_batch_in_pieces_teaches_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from millrace_tuner.jobs import training

    whole, pieces = spec_of(base, tmp_path / "whole"), spec_of(base, tmp_path / "pieces")
    run_of(base, whole, EvenScorer(), Cancellation()).train()
    monkeypatch.setattr(training, "_MICRO_BATCH_TOKENS", 80)  # two answers a forward pass
    run = run_of(base, pieces, EvenScorer(), Cancellation())
    assert run.micro_batch_size == 2
    run.train()
    for one, other in zip(lines_of(whole)[:5], lines_of(pieces)[:5], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_what_is_scored_is_what_serving_computes_and_what_was_written(
    base: Path, tmp_path: Path
) -> None:
    scorer = EvenScorer()
    run_of(base, spec_of(base, tmp_path / "out"), scorer, Cancellation())
    raw = tasks(2)
    stops = {tokenizer().convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    for task, sequence in zip(raw, scorer.scored[:2], strict=True):
        served = tokenizer().apply_chat_template(
            task["messages"], add_generation_prompt=True, tokenize=True
        )["input_ids"]
        assert sequence[: len(served)].tolist() == list(served)
        answer = sequence[len(served) :].tolist()
        assert 1 <= len(answer) <= METHOD.maximum_completion_tokens
        assert not set(answer[:-1]) & stops


def test_rewards_come_at_the_last_token_less_the_divergence() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    log_probs = torch.tensor([[9.0, -1.0, -2.0, 9.0], [-1.0, 9.0, 9.0, 9.0]])
    reference = torch.tensor([[0.0, -2.0, -2.0, 0.0], [-0.5, 0.0, 0.0, 0.0]])
    found = token_rewards(torch.tensor([3.0, 5.0]), log_probs, reference, mask, 0.1)
    expected = torch.tensor([[0.0, -0.1, 3.0, 0.0], [5.05, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_advantages_are_the_discounted_sum_of_surprises() -> None:
    """Against the definition, sum by sum, for answers at different places of a row."""
    torch.manual_seed(0)
    discount, decay = 0.9, 0.8
    mask = torch.zeros(3, 9)
    spans = ((2, 9), (0, 4), (5, 6))
    for row, (start, end) in enumerate(spans):
        mask[row, start:end] = 1
    rewards, values = torch.randn(3, 9) * mask, torch.randn(3, 9) * mask
    found = generalized_advantages(rewards, values, mask, discount=discount, decay=decay)
    for row, (start, end) in enumerate(spans):
        for place in range(start, end):
            expected = 0.0
            for later in range(place, end):
                following = float(values[row, later + 1]) if later + 1 < end else 0.0
                surprise = float(rewards[row, later] - values[row, later]) + discount * following
                expected += (discount * decay) ** (later - place) * surprise
            assert float(found[row, place]) == pytest.approx(expected, abs=1e-5)
    assert not (found * (1 - mask)).any()


def test_without_decay_returns_are_the_rewards_to_come() -> None:
    mask = torch.ones(1, 5)
    rewards, values = torch.randn(1, 5), torch.randn(1, 5)
    found = generalized_advantages(rewards, values, mask, discount=1.0, decay=1.0) + values
    torch.testing.assert_close(found, rewards.flip(1).cumsum(1).flip(1))


def test_whitening_is_over_answers_only() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    found = whitened(torch.tensor([[1.0, 2.0, 1e6], [-1e6, 3.0, 4.0]]), mask)
    kept = found[mask.bool()]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float(kept.var(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not found[~mask.bool()].any()


def test_what_goes_too_far_is_clipped() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5], requires_grad=True)
    losses = policy_losses(ratio, torch.tensor([1.0, -1.0, -1.0, 1.0]), 0.2)
    assert losses.tolist() == pytest.approx([-1.2, 0.8, 1.5, -0.5])
    (gradient,) = torch.autograd.grad(losses.sum(), ratio)
    assert gradient.tolist() == [0, 0, 1, -1]
    values = torch.tensor([1.0, 0.1], requires_grad=True)
    losses = value_losses(values, torch.zeros(2), torch.tensor([2.0, 2.0]), 0.2)
    assert losses.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 1.9**2])
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert gradient.tolist() == pytest.approx([0, -1.9])


def test_the_reward_model_must_be_whole_and_read_the_same_tokens(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="companion_path"):
        ppo.verify_reward_model(spec_of(base, tmp_path))
    shutil.copytree(base / "base/model", tmp_path / "other/model")
    path = tmp_path / "other/model/tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["zz"] = document["model"]["vocab"].pop("z")
    path.write_text(json.dumps(document))
    digest = manifest.commit(tmp_path / "other", tmp_path / "reward", "checkpoint", {})
    spec = spec_of(base, tmp_path, companion_path=tmp_path / "reward", companion_digest=digest)
    with pytest.raises(JobError) as caught:
        ppo.verify_reward_model(spec)
    assert caught.value.reason == "REWARD_MODEL_UNSUITABLE"
    (tmp_path / "reward/model/tokenizer.json").write_text("{}")
    with pytest.raises(JobError) as caught:
        ppo.verify_reward_model(spec)
    assert caught.value.reason == "REWARD_MODEL_INVALID"


def test_a_committed_reward_model_rewards(base: Path, tmp_path: Path) -> None:
    """From the files of a job to its checkpoints, with a reward model as it is committed."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        base / "base/model", num_labels=1, pad_token_id=tokenizer().pad_token_id
    )
    temporary = tmp_path / ".tmp-reward"
    model.save_pretrained(temporary / "model")
    tokenizer().save_pretrained(temporary / "model")
    digest = manifest.commit(temporary, tmp_path / "reward", "checkpoint", {})
    spec = spec_of(
        base,
        tmp_path / "out",
        companion_path=tmp_path / "reward",
        companion_digest=digest,
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=write_jsonl(tmp_path / "train.jsonl", tasks(60)),
        hyperparameters=Hyperparameters(5, 28, 1.0, precision="bfloat16"),
    )
    stream = io.StringIO()
    spec.output_directory.mkdir()
    ppo.learn(spec, Reporter(stream), Cancellation())
    last = committed(spec)[-1].metadata
    gained = last["valid"]["valid_reward_mean"] - last["base_valid"]["valid_reward_mean"]
    steps = [line for line in lines_of(spec) if "train_loss" in line]
    spread = steps[0]["train_reward_std"]
    assert gained > spread
    assert steps[-1]["train_reward_mean"] > steps[0]["train_reward_mean"] + spread
