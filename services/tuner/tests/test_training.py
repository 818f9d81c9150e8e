"""The run inside the job, in this process."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_builders import conversations, tokenizer, write_base, write_jsonl

from millrace_examples.kinds import Conversation
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.domain import Integration
from millrace_tuner.jobs import adapter, evaluation, examples, training
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec, load_codec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and datasets


def codec() -> ChatCodec:
    return ChatCodec(tokenizer(), ("<|endoftext|>", "<|im_end|>"))


def some_examples(count: int) -> list[Example]:
    """Of unequal lengths, so that batches hold unequal numbers of learned tokens."""
    made = []
    for number, raw in enumerate(conversations(count)):
        raw["messages"][-1]["content"] *= 1 + number % 5
        made.append(examples.encode(Conversation(1, tuple(raw["messages"])), codec(), 512))
    return made


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=tmp_path / "base",
        base_checkpoint_digest=write_base(tmp_path / "base"),
        training_file_path=tmp_path / "train.jsonl",
        training_file_sha256=write_jsonl(tmp_path / "train.jsonl", conversations(20)),
        output_directory=tmp_path / "out",
        hyperparameters=Hyperparameters(1, 8, 1.0, precision="float32"),
        learning_rate=1e-3,
        adapter=Adapter(rank=4, alpha=8),
        threads=1,
    )


def losses_of(spec: Spec) -> list[float]:
    spec.output_directory.mkdir()
    made = some_examples(20)
    objective = SupervisedObjective(codec(), Material(made[2:], made[:2], "split", 0, 0))
    run = Run(spec, objective, tokenizer(), Reporter(io.StringIO()), Cancellation())
    run.train()
    return [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]


def test_a_batch_in_pieces_weighs_every_learned_token_the_same(
    spec: Spec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = losses_of(spec)
    monkeypatch.setattr(training, "_MICRO_BATCH_TOKENS", 1)  # one example a forward pass
    pieces = losses_of(spec.model_copy(update={"output_directory": tmp_path / "pieces"}))
    assert len(whole) == 3
    assert pieces == pytest.approx(whole, rel=1e-4)


def test_the_run_is_tracked_as_its_user_calls_it(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, Any]] = []

    class Told:
        def __init__(self, *given: Any, **named: Any) -> None:
            told.append((given[:3], named))

    monkeypatch.setattr(training, "Tracking", Told)
    wanted = Integration("wandb", "docs", "first", ("blue", "green"), "team")
    made = some_examples(4)
    for integration in (None, wanted):
        tracked = {"tenant": "acme", "mlflow_tracking_uri": "x", "integration": integration}
        objective = SupervisedObjective(codec(), Material(made[2:], made[:2], "split", 0, 0))
        reporter = Reporter(io.StringIO())
        Run(spec.model_copy(update=tracked), objective, tokenizer(), reporter, Cancellation())
    assert told == [
        (("x", spec.job, f"acme/{spec.model}"), {"name": "", "tags": {"tags": "", "entity": ""}}),
        (
            ("x", spec.job, "acme/docs"),
            {"name": "first", "tags": {"tags": "blue,green", "entity": "team"}},
        ),
    ]


def test_the_score_is_the_mean_over_learned_tokens(spec: Spec) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model = adapter.load_base(spec.base_checkpoint_path / "model")
    made = some_examples(7)
    expected, correct = 0.0, 0
    with torch.no_grad():
        for example in made:
            ids = torch.from_numpy(example.token_ids.astype(np.int64))
            log_probabilities = model(ids[None]).logits[0].double().log_softmax(-1)
            for position in np.flatnonzero(example.is_learned):
                expected -= float(log_probabilities[position - 1, ids[position]])
                correct += int(log_probabilities[position - 1].argmax() == ids[position])
    learned = sum(int(example.is_learned.sum()) for example in made)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    for size in (1, 3):
        score = evaluation.score(
            model, made, pad_token_id=0, batch_size=size, precision=torch.float32
        )
        assert score.loss == pytest.approx(expected / learned, rel=1e-5)
        assert score.accuracy == pytest.approx(correct / learned)


def test_the_forward_pass_is_bounded_and_divides_the_batch(spec: Spec) -> None:
    def size(length: int, batch_size: int) -> int:
        given = replace(spec.hyperparameters, batch_size=batch_size)
        changed = spec.model_copy(update={"hyperparameters": given})
        return training.micro_batch_size(changed, length)

    assert size(100, 8) == 8
    assert size(4096, 12) == 4
    assert size(4096, 7) == 1
    assert size(100_000, 8) == 1


def test_a_model_without_a_chat_template_is_refused(spec: Spec) -> None:
    model_directory = spec.base_checkpoint_path / "model"
    (model_directory / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(JobError) as caught:
        load_codec(model_directory)
    assert caught.value.reason == "CHAT_TEMPLATE_MISSING"


def test_what_cannot_be_loaded_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    with pytest.raises(JobError) as caught:
        adapter.load_base(tmp_path)
    assert caught.value.reason == "BASE_MODEL_UNSUPPORTED"


def test_the_digest_of_a_specification_is_of_what_is_trained_only(spec: Spec) -> None:
    moved = {"output_directory": Path("/elsewhere"), "threads": 7, "mlflow_tracking_uri": "x"}
    assert spec.model_copy(update=moved).digest == spec.digest
    changed: dict[str, Any] = {
        "seed": 9,
        "adapter": Adapter(kind="none"),
        "training_file_sha256": "sha256:0",
    }
    for key, value in changed.items():
        assert spec.model_copy(update={key: value}).digest != spec.digest


def test_a_state_is_kept_only_until_the_next(tmp_path: Path) -> None:
    from millrace_tuner.jobs import checkpoint

    for step in (1, 2):
        written = tmp_path / ".tmp-trainer" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "optimizer.pt").write_text("state")
        checkpoint.commit_state(written, tmp_path, step, "sha256:spec")
    newest = checkpoint.newest_state(tmp_path, "sha256:spec")
    assert newest is not None
    assert newest.step == 2
    assert [path.name for path in (tmp_path / "training_state").iterdir()] == ["00000002"]
    with pytest.raises(JobError):
        checkpoint.newest_state(tmp_path, "sha256:other")
    (newest.path / "optimizer.pt").write_text("other")
    with pytest.raises(JobError) as caught:
        checkpoint.newest_state(tmp_path, "sha256:spec")
    assert caught.value.reason == "CHECKPOINT_DAMAGED"
    assert manifest.MANIFEST_NAME in {path.name for path in newest.path.iterdir()}
