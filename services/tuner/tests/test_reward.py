"""Reward models: learned from pairs, saved with their head, and used to score."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_builders import preferences, tokenizer, write_base, write_jsonl

from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import reward
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.reward_scorer import RewardScorer
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Hyperparameters, RewardModel

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, accelerate and datasets
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    folder = tmp_path_factory.mktemp("reward")
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=folder / "base",
        base_checkpoint_digest=write_base(folder / "base"),
        training_file_path=folder / "pairs.jsonl",
        training_file_sha256=write_jsonl(folder / "pairs.jsonl", preferences(40)),
        output_directory=folder / "out",
        method=RewardModel(),
        hyperparameters=Hyperparameters(2, 8, 1.0, precision="float32"),
        learning_rate=5e-3,
        adapter=Adapter(rank=4, alpha=8, dropout=0.1),
        seed=7,
        threads=1,
    )


def learned(spec: Spec, stop_after: int = 0) -> list[dict[str, Any]]:
    """The checkpoints, as the job tells of them; ``stop_after`` is a step."""
    cancellation = Cancellation()

    class Lines(io.StringIO):
        def write(self, text: str) -> int:
            line = json.loads(text)
            if line.get("phase") == "train" and line["completed"] == stop_after:
                cancellation.requested = True
            return super().write(text)

    lines = Lines()
    spec.output_directory.mkdir(exist_ok=True)
    reward.learn(spec, Reporter(lines), cancellation)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in told if line["kind"] == "checkpoint"]


@pytest.fixture(scope="module")
def finished(spec: Spec) -> list[dict[str, Any]]:
    return learned(spec)


def sequences(name: str) -> list[Any]:
    """Prompts and answers of pairs that were not in the file, as serving tokenises them."""
    made = []
    for row in preferences(48)[40:]:
        prompt = tokenizer().apply_chat_template(
            row["input"]["messages"], add_generation_prompt=True, tokenize=False
        )
        text = f"{prompt}{row[name][0]['content']}<|im_end|>"
        made.append(np.array(tokenizer()(text)["input_ids"], dtype=np.int32))
    return made


def test_better_answers_score_higher(finished: list[dict[str, Any]]) -> None:
    assert finished[-1]["metrics"]["valid_loss"] < 0.4 < np.log(2)
    assert finished[-1]["metrics"]["valid_reward_accuracy"] == 1.0
    scorer = RewardScorer(Path(finished[-1]["path"]))
    better = scorer.score(sequences("preferred_output"))
    worse = scorer.score(sequences("non_preferred_output"))
    assert better.shape == (8,)
    assert better.dtype == np.float32
    assert (better > worse + 0.5).all()


def test_a_score_does_not_depend_on_what_is_scored_beside(
    finished: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = RewardScorer(Path(finished[-1]["path"]))
    every = sequences("preferred_output") + sequences("non_preferred_output")
    together = scorer.score(every)
    monkeypatch.setattr("millrace_tuner.jobs.reward_scorer._BATCH_TOKENS", 1)
    np.testing.assert_allclose(scorer.score(every), together, rtol=1e-4, atol=1e-5)
    assert scorer.score([]).shape == (0,)
    with pytest.raises(ValueError, match="a token"):
        scorer.score([np.array([], dtype=np.int32)])


def test_the_merged_model_scores_as_base_adapter_and_head_do(
    finished: list[dict[str, Any]], spec: Spec
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    checkpoint = Path(finished[-1]["path"])
    base = AutoModelForSequenceClassification.from_pretrained(
        spec.base_checkpoint_path / "model", num_labels=1, pad_token_id=0
    )
    adapted = PeftModel.from_pretrained(base, checkpoint / "adapter").eval()
    ids = sequences("preferred_output")
    with torch.no_grad():
        expected = [
            float(adapted(torch.from_numpy(one.astype(np.int64))[None]).logits) for one in ids
        ]
    found = RewardScorer(checkpoint).score(ids)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_its_configuration_is_its_own_and_its_tokenizer_the_bases(
    finished: list[dict[str, Any]], spec: Spec
) -> None:
    base = spec.base_checkpoint_path / "model"
    model = Path(finished[-1]["path"]) / "model"
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in model.iterdir()} - {"README.md"} == names  # the model's card
    for path in base.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            assert (model / path.name).read_bytes() == path.read_bytes()
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["pad_token_id"] == tokenizer().pad_token_id
    assert str(spec.output_directory.parent) not in (model / "config.json").read_text()
    assert not (model.parent / "evaluation").exists()  # nothing is compressed


def test_stopped_it_goes_on_and_ends_with_the_same_bytes(
    finished: list[dict[str, Any]], spec: Spec
) -> None:
    again = spec.model_copy(update={"output_directory": spec.output_directory.with_name("stopped")})
    with pytest.raises(JobError):
        learned(again, stop_after=2)
    assert [c["digest"] for c in learned(again)] == [c["digest"] for c in finished]


def test_all_weights_are_trained_and_rewards_centred(
    finished: list[dict[str, Any]], spec: Spec
) -> None:
    changes = {
        "adapter": Adapter(kind="none"),
        "method": RewardModel(center_coefficient=1.0),
        "learning_rate": 1e-3,
        "output_directory": spec.output_directory.with_name("centred"),
    }
    checkpoint = learned(spec.model_copy(update=changes))[-1]
    assert checkpoint["metrics"]["valid_reward_accuracy"] == 1.0
    scorer = RewardScorer(Path(checkpoint["path"]))
    sums = scorer.score(sequences("preferred_output")) + scorer.score(
        sequences("non_preferred_output")
    )
    assert np.abs(sums).mean() < 0.5


def test_the_head_of_a_base_in_four_bits_is_trained_whole(spec: Spec) -> None:
    changes = {
        "adapter": Adapter(rank=4, alpha=8, quantized_base=True),
        "hyperparameters": Hyperparameters(1, 8, 1.0, precision="bfloat16"),
        "output_directory": spec.output_directory.with_name("quantized"),
    }
    checkpoint = learned(spec.model_copy(update=changes))[-1]
    assert checkpoint["metrics"]["valid_loss"] < 0.5
    scorer = RewardScorer(Path(checkpoint["path"]))
    better = scorer.score(sequences("preferred_output"))
    assert (better > scorer.score(sequences("non_preferred_output"))).all()


def test_a_model_without_a_head_is_no_reward_model(spec: Spec) -> None:
    with pytest.raises(JobError) as caught:
        RewardScorer(spec.base_checkpoint_path)
    assert caught.value.reason == "REWARD_MODEL_UNSUITABLE"
    assert "Qwen3ForCausalLM" in str(caught.value)
