"""Learning from preferences, in this process: DPO and its losses, ORPO and KTO."""

import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tuner_builders import judgements, preferences, tokenizer, write_base, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_runtime.work import JobFailure, run_job
from millrace_tuner.jobs import preference
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec, load_codec
from millrace_tuner.jobs.preference_batches import JudgedCollator
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import (
    Adapter,
    DirectPreference,
    Hyperparameters,
    KahnemanTversky,
    Method,
    OddsRatio,
    PreferenceLoss,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, accelerate and datasets
    pytest.mark.timeout(120),
]
METHODS: dict[str, Method] = {
    "dpo": DirectPreference(),
    "orpo": OddsRatio(beta=0.5),
    "kto": KahnemanTversky(),
}


@dataclass(frozen=True)
class Ground:
    """What all jobs here start from."""

    folder: Path
    base_digest: str
    pairs_sha256: str
    verdicts_sha256: str

    def spec(self, method: Method, name: str, **changes: Any) -> Spec:
        judged = method.kind == "kto"
        given: dict[str, Any] = {
            "job": "ftjob-1",
            "model": "ft:demo:default::abc123",
            "base_version": "demo@1",
            "base_checkpoint_path": self.folder / "base",
            "base_checkpoint_digest": self.base_digest,
            "training_file_path": self.folder / ("verdicts.jsonl" if judged else "pairs.jsonl"),
            "training_file_sha256": self.verdicts_sha256 if judged else self.pairs_sha256,
            "output_directory": self.folder / name,
            "method": method,
            "hyperparameters": Hyperparameters(2, 8, 1.0, precision="float32"),
            "learning_rate": 5e-3,
            "adapter": Adapter(rank=4, alpha=8, dropout=0.1),
            "seed": 7,
            "threads": 1,
        }
        return Spec(**{**given, **changes})


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("preference")
    return Ground(
        folder,
        write_base(folder / "base"),
        write_jsonl(folder / "pairs.jsonl", preferences(40)),
        write_jsonl(folder / "verdicts.jsonl", judgements(20)),
    )


class StopAfter(io.StringIO):
    """Asks a job to stop once it has told of a step; without one, takes its lines."""

    def __init__(self, cancellation: Cancellation, step: int = 0) -> None:
        super().__init__()
        self._cancellation, self._step = cancellation, step

    def write(self, text: str) -> int:
        line = json.loads(text)
        if line.get("phase") == "train" and line["completed"] == self._step:
            self._cancellation.requested = True
        return super().write(text)

    def told(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.getvalue().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def learned(spec: Spec, stop_after: int = 0) -> StopAfter:
    cancellation = Cancellation()
    lines = StopAfter(cancellation, stop_after)
    spec.output_directory.mkdir(exist_ok=True)
    preference.learn(spec, Reporter(lines), cancellation)
    return lines


@pytest.fixture(scope="module")
def finished(ground: Ground) -> Callable[[str], StopAfter]:
    """The job of a method that nothing disturbed, done once."""
    return cache(lambda name: learned(ground.spec(METHODS[name], name)))


@pytest.mark.parametrize("name", METHODS)
def test_the_better_answers_become_likelier(
    finished: Callable[[str], StopAfter], name: str
) -> None:
    lines = finished(name)
    checkpoints = lines.told("checkpoint")
    metrics = [checkpoint["metrics"] for checkpoint in checkpoints]
    base = _metadata(checkpoints[0])["base_valid"]
    assert base["valid_loss"] > metrics[0]["valid_loss"] > metrics[1]["valid_loss"]
    assert metrics[1]["valid_reward_accuracy"] == 1.0
    assert metrics[1]["valid_reward_margin"] > base["valid_reward_margin"] + 0.05
    if name == "dpo":
        assert base["valid_loss"] == pytest.approx(np.log(2))  # the model is its own reference
    if name == "kto":
        assert base["valid_loss"] == pytest.approx(0.5)
    step = lines.told("progress")[-1]["metrics"]
    assert {"train_loss", "train_reward_margin", "learning_rate"} <= set(step)
    assert checkpoints[-1]["final"]


def _metadata(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return manifest.read(Path(checkpoint["path"]))[0].metadata


@pytest.mark.parametrize("name", METHODS)
def test_stopped_it_goes_on_and_ends_with_the_same_bytes(
    finished: Callable[[str], StopAfter], ground: Ground, name: str
) -> None:
    spec = ground.spec(METHODS[name], f"{name}-stopped")
    with pytest.raises(JobError) as caught:
        learned(spec, stop_after=2)
    assert caught.value.reason == "CANCELLED"
    lines = learned(spec)
    assert lines.told("progress")[0]["completed"] == 4
    digests = [checkpoint["digest"] for checkpoint in lines.told("checkpoint")]
    assert digests == [checkpoint["digest"] for checkpoint in finished(name).told("checkpoint")]


def likelihoods(directory: Path, answers: list[str], number: int) -> tuple[Any, Any]:
    """Sum of the log-probabilities of each answer after its prompt, and the answers' lengths."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    prompt = tokenizer().apply_chat_template(
        preferences(number + 1)[number]["input"]["messages"],
        add_generation_prompt=True,
        return_dict=False,
    )
    sums, lengths = [], []
    for text in answers:
        ids = tokenizer()(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        sums.append(float(logits.log_softmax(-1)[range(len(ids)), ids].sum()))
        lengths.append(len(ids))
    return np.array(sums), np.array(lengths)


def heldout_pairs(checkpoint: dict[str, Any]) -> list[int]:
    """The numbers of the held-out pairs, read from the prompts of the held-out stream."""
    stream = np.load(Path(checkpoint["path"]) / "evaluation/heldout-00000.npy")
    documents = tokenizer().decode(stream.tolist()).split("<|endoftext|>")[:-1]
    return [int(text.partition(" after ")[2].partition(".")[0]) for text in documents]


@pytest.mark.parametrize("adapter", [Adapter(rank=4, alpha=8), Adapter(kind="none")])
def test_the_measured_loss_is_what_the_served_models_say(ground: Ground, adapter: Adapter) -> None:
    """Computed from the merged model and the base, without TRL and with serving's ids."""
    spec = ground.spec(
        DirectPreference(),
        f"exact-{adapter.kind}",
        adapter=adapter,
        hyperparameters=Hyperparameters(1, 8, 1.0, precision="float32"),
    )
    checkpoint = learned(spec).told("checkpoint")[-1]
    margins = []
    for number in heldout_pairs(checkpoint):
        row = preferences(number + 1)[number]
        answers = [row[f"{name}_output"][0]["content"] for name in ("preferred", "non_preferred")]
        tuned, _ = likelihoods(Path(checkpoint["path"]) / "model", answers, number)
        base, _ = likelihoods(ground.folder / "base/model", answers, number)
        moved = tuned - base
        margins.append(0.1 * (moved[0] - moved[1]))
    expected = np.mean([np.log1p(np.exp(-margin)) for margin in margins])
    assert checkpoint["metrics"]["valid_loss"] == pytest.approx(expected, rel=1e-3)
    assert checkpoint["metrics"]["valid_reward_margin"] == pytest.approx(np.mean(margins), rel=1e-3)


def test_the_loss_of_orpo_is_of_answers_alone(finished: Callable[[str], StopAfter]) -> None:
    checkpoint = finished("orpo").told("checkpoint")[-1]
    losses, odds, tokens = [], [], []
    for number in heldout_pairs(checkpoint):
        row = preferences(number + 1)[number]
        answers = [row[f"{name}_output"][0]["content"] for name in ("preferred", "non_preferred")]
        sums, lengths = likelihoods(Path(checkpoint["path"]) / "model", answers, number)
        means = sums / lengths
        log_odds = means - np.log1p(-np.exp(means))
        losses.append(-sums[0])
        tokens.append(lengths[0])
        odds.append(-np.log1p(np.exp(log_odds[1] - log_odds[0])))
    expected = sum(losses) / sum(tokens) - 0.5 * np.mean(odds)
    assert checkpoint["metrics"]["valid_loss"] == pytest.approx(expected, rel=1e-3)


def objective_run(ground: Ground, method: Method, name: str, **changes: Any) -> Run:
    spec = ground.spec(method, name, **changes)
    spec.output_directory.mkdir(exist_ok=True)
    cancellation, reporter = Cancellation(), Reporter(io.StringIO())
    read = preference.read_judged if method.kind == "kto" else preference.read_compared
    codec = load_codec(spec.base_checkpoint_path / "model")
    objective = read(spec, reporter, cancellation)(codec)
    return Run(spec, objective, codec.tokenizer, reporter, cancellation)


def test_every_loss_is_one_that_the_trainer_knows(ground: Ground) -> None:
    run = objective_run(ground, DirectPreference(), "losses")
    trainer: Any = run.trainer
    trainer.label_smoothing = 0.1
    found = {}
    for loss in get_args(PreferenceLoss):
        trainer.loss_types = [loss]
        found[loss] = run.objective.measure(run)["valid_loss"]
    assert len(found) == 15
    assert all(np.isfinite(list(found.values())))
    trainer.loss_types = ["nonsense"]
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        run.objective.measure(run)
    assert all(repr(loss) in str(caught.value) for loss in found)


def test_what_the_trainer_sees_are_servings_ids(ground: Ground) -> None:
    run = objective_run(ground, DirectPreference(), "ids", adapter=Adapter(rank=4, dropout=0.3))
    batch = next(iter(run.trainer.get_train_dataloader()))
    texts = set()
    for ids, mask, real in zip(
        batch["input_ids"], batch["completion_mask"], batch["attention_mask"], strict=True
    ):
        whole = ids[real.bool()]
        assert not mask[~real.bool()].any()
        prompt, answer = (tokenizer().decode(ids[choice.bool()]) for choice in (real - mask, mask))
        assert whole.tolist() == tokenizer()(prompt + answer)["input_ids"]
        texts.add((prompt, answer))
    rows = {
        (
            tokenizer().apply_chat_template(
                row["input"]["messages"], add_generation_prompt=True, tokenize=False
            ),
            f"{row[name][0]['content']}<|im_end|>",
        )
        for row in preferences(40)
        for name in ("preferred_output", "non_preferred_output")
    }
    assert texts <= rows
    dropped = [m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropped) == {0.3}  # TRL would have switched the adapter's off


def test_kto_holds_each_prompt_against_another_answer() -> None:
    def row(prompt: list[int], answer: list[int]) -> dict[str, Any]:
        mask = [False] * len(prompt) + [True] * len(answer)
        return {"ids": prompt + answer, "mask": mask, "label": True}

    batch = JudgedCollator(0, 4)([row([1, 2], [3]), row([4], [5, 6]), row([7, 8], [9, 9])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 9]]
    assert batch["KL_input_ids"].tolist() == [[1, 2, 9, 9], [4, 3, 0, 0], [7, 8, 5, 6]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert batch["KL_attention_mask"].sum(1).tolist() == [4, 2, 4]


def test_kto_needs_two_answers_in_a_forward_pass(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace_tuner.jobs.training._MICRO_BATCH_TOKENS", 1)
    with pytest.raises(JobError) as caught:
        objective_run(ground, KahnemanTversky(), "alone")
    assert caught.value.reason == "BATCH_TOO_SMALL"


def test_half_precision_and_activations_computed_again(ground: Ground) -> None:
    given = Hyperparameters(1, 8, 1.0, gradient_checkpointing=True, precision="bfloat16")
    method = DirectPreference("robust", label_smoothing=0.1)
    (checkpoint,) = learned(ground.spec(method, "half", hyperparameters=given)).told("checkpoint")
    base = _metadata(checkpoint)["base_valid"]
    assert checkpoint["metrics"]["valid_loss"] < base["valid_loss"] - 0.05


def test_the_job_as_the_service_runs_it_names_a_bad_line_at_once(ground: Ground) -> None:
    path = ground.folder / "bad.jsonl"
    rows: list[dict[str, Any]] = [*preferences(2), {**preferences(1)[0], "preferred_output": 3}]
    spec = ground.spec(
        DirectPreference(),
        "bad",
        training_file_path=path,
        training_file_sha256=write_jsonl(path, rows),
    )
    folder = ground.folder / "bad-job"
    outcome = run_job(
        "millrace_tuner.jobs.preference",
        json.loads(spec.model_dump_json()),
        folder,
        lambda message: None,
        threading.Event(),
    )
    assert isinstance(outcome, JobFailure), outcome
    assert outcome.reason == "INVALID_EXAMPLE"
    assert "line 3: preferred_output" in outcome.message
    assert (folder / "job.log").read_text() == ""  # torch would have warned


def test_the_codec_of_the_base_is_the_tests_own(ground: Ground) -> None:
    """What the tests above call serving's ids are those of the checkpoint."""
    codec: ChatCodec = load_codec(ground.folder / "base/model")
    assert codec.encode(["the mill"]) == [tokenizer()("the mill")["input_ids"]]
