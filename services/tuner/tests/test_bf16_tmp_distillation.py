"""Learning a teacher's distributions."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_builders import conversations, tokenizer, write_base, write_jsonl

from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import (
    adapter,
    checkpoint,
    distillation,
    distillation_objective,
    supervised,
)
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.divergence import Divergence
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Distillation, Hyperparameters, Supervised

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A teacher that has learned the conversations, and a smaller student that has not."""
    folder = tmp_path_factory.mktemp("distillation")
    spec = Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=folder / "untaught",
        base_checkpoint_digest=write_base(folder / "untaught", hidden_size=96),
        training_file_path=folder / "train.jsonl",
        training_file_sha256=write_jsonl(folder / "train.jsonl", conversations(32)),
        output_directory=folder / "teacher",
        method=Supervised(),
        hyperparameters=Hyperparameters(
            6, 8, 1.0, maximum_sequence_tokens=128, precision="bfloat16"
        ),
        learning_rate=5e-3,
        adapter=Adapter(kind="none"),
        threads=1,
    )
    spec.output_directory.mkdir()
    supervised.learn(spec, Reporter(io.StringIO()), Cancellation())
    teacher = checkpoint.checkpoints(spec.output_directory, spec.digest)[-1]
    return spec.model_copy(
        update={
            "base_checkpoint_path": folder / "student",
            "base_checkpoint_digest": write_base(folder / "student"),
            "companion_path": teacher.path,
            "companion_digest": teacher.digest,
            "method": Distillation(teacher="demo@9"),
            "hyperparameters": replace(spec.hyperparameters, epochs=3),
        }
    )


def train(
    spec: Spec, reporter: Reporter | None = None, cancellation: Cancellation | None = None
) -> list[checkpoint.Committed]:
    spec.output_directory.mkdir(exist_ok=True)
    distillation.learn(spec, reporter or Reporter(io.StringIO()), cancellation or Cancellation())
    return checkpoint.checkpoints(spec.output_directory, spec.digest)


@pytest.mark.parametrize(("interpolation", "own_answers"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5)])
def test_the_student_comes_near_the_teacher(
    taught: Spec, tmp_path: Path, interpolation: float, own_answers: float
) -> None:
    method = Distillation("demo@9", interpolation=interpolation, own_answers=own_answers)
    final = train(taught.model_copy(update={"method": method, "output_directory": tmp_path / "o"}))
    before, after = final[-1].metadata["base_valid"], final[-1].metadata["valid"]
    assert after["valid_divergence"] < before["valid_divergence"] / 2
    assert after["valid_loss"] < before["valid_loss"] - 1
    assert final[-1].metadata["trained_tokens"] > 0


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(taught: Spec, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "method": Distillation("demo@9", own_answers=0.5),
        "adapter": Adapter(rank=4, alpha=8, dropout=0.1),
        "state_interval_seconds": 0,
        "hyperparameters": replace(taught.hyperparameters, epochs=2),
    }
    spec = taught.model_copy(update={**changes, "output_directory": tmp_path / "whole"})
    whole = train(spec)
    spec = spec.model_copy(update={"output_directory": tmp_path / "parts"})
    cancellation = Cancellation()
    with pytest.raises(JobError, match="stopped on request"):
        train(spec, _StopAtStep(2, cancellation), cancellation)
    assert [c.digest for c in train(spec)] == [c.digest for c in whole]


class _StopAtStep(Reporter):
    def __init__(self, step: int, cancellation: Cancellation) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._cancellation = cancellation

    def progress(self, phase: str, completed: int, total: int, *more: Any) -> None:
        if phase == "train" and completed == self._step:
            self._cancellation.requested = True


@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
def test_the_divergence_is_that_of_the_paper(taught: Spec, interpolation: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student = adapter.load_base(taught.base_checkpoint_path / "model")
    assert taught.companion_path is not None
    teacher = adapter.load_base(taught.companion_path / "model")
    method = Distillation("demo@9", temperature=2.0, interpolation=interpolation)
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(12) < 5, -100, ids)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    found = Divergence(teacher, method)(student, student, batch)
    expected = GKDTrainer.generalized_jsd_loss(
        student(ids).logits[:, :-1],
        teacher(ids).logits[:, :-1],
        labels[:, 1:],
        beta=interpolation,
        temperature=2.0,
        reduction="sum",
    )
    assert found.tokens == 14
    assert float(found.divergence) == pytest.approx(float(expected), rel=1e-4)
    weight = student.model.embed_tokens.weight
    (ours,) = torch.autograd.grad(found.divergence, weight)
    (theirs,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_answers_the_last_question_that_is_learned() -> None:
    labels = np.array([-100, -100, 5, 6, -100, -100, 9, 10, -100])
    prompt = distillation_objective._prompt(np.arange(9), labels)
    assert prompt.token_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert distillation_objective._longest_run(labels != -100) == 2


def test_a_teacher_with_another_vocabulary_is_refused(taught: Spec, tmp_path: Path) -> None:
    write_base(tmp_path / "other")
    assert taught.companion_path is not None
    grown = type(tokenizer()).from_pretrained(tmp_path / "other/model")
    grown.add_tokens(["millwright"])
    grown.save_pretrained(tmp_path / "other/model")
    with pytest.raises(JobError, match="millwright") as caught:
        distillation.require_same_vocabulary(
            tmp_path / "other/model", taught.base_checkpoint_path / "model"
        )
    assert caught.value.reason == "VOCABULARY_DIFFERS"


def test_a_damaged_teacher_is_refused(taught: Spec) -> None:
    with pytest.raises(JobError) as caught:
        distillation.verified_teacher(
            taught.model_copy(update={"companion_digest": "sha256:" + "0" * 64})
        )
    assert caught.value.reason == "TEACHER_INVALID"
