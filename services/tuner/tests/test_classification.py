"""Learning to tell classes apart."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuner_builders import write_base, write_jsonl

from millrace_examples.kinds import Classified
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, class_examples, classification
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import load_codec
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Classification, Hyperparameters

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

WORDS = {"water": "race", "stone": "mill", "bread": "oven"}


def rows(count: int) -> list[dict[str, Any]]:
    words = list(WORDS)
    return [
        {"text": f"{n}: {words[n % 3]} on day {n * 7 % 31}.", "label": WORDS[words[n % 3]]}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    folder = tmp_path_factory.mktemp("classification")
    return Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=folder / "base",
        base_checkpoint_digest=write_base(folder / "base"),
        training_file_path=folder / "train.jsonl",
        training_file_sha256=write_jsonl(folder / "train.jsonl", rows(60)),
        validation_file_path=folder / "valid.jsonl",
        validation_file_sha256=write_jsonl(folder / "valid.jsonl", rows(84)[60:]),
        output_directory=folder / "out",
        method=Classification(),
        hyperparameters=Hyperparameters(3, 8, 1.0, precision="float32"),
        learning_rate=1e-2,
        adapter=Adapter(rank=4, alpha=8),
        threads=1,
    )


def train(
    spec: Spec, reporter: Reporter | None = None, cancellation: Cancellation | None = None
) -> list[checkpoint.Committed]:
    spec.output_directory.mkdir(exist_ok=True)
    classification.learn(spec, reporter or Reporter(io.StringIO()), cancellation or Cancellation())
    return checkpoint.checkpoints(spec.output_directory, spec.digest)


@pytest.fixture(scope="module")
def finished(spec: Spec) -> list[checkpoint.Committed]:
    return train(spec)


def test_the_classes_are_learned(finished: list[checkpoint.Committed]) -> None:
    base, valid = finished[-1].metadata["base_valid"], finished[-1].metadata["valid"]
    assert base["valid_accuracy"] < 0.7
    assert valid["valid_accuracy"] > 0.9
    assert valid["valid_f1_macro"] > 0.9
    assert valid["valid_loss"] < base["valid_loss"] / 2
    assert not (finished[-1].path / "evaluation").exists()


def test_the_committed_model_says_the_labels_and_predicts_them(
    finished: list[checkpoint.Committed], spec: Spec
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = finished[-1].path / "model"
    config = json.loads((directory / "config.json").read_text())
    assert config["id2label"] == {"0": "mill", "1": "oven", "2": "race"}
    assert config["label2id"] == {"mill": 0, "oven": 1, "race": 2}
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    held = rows(84)[60:]
    with torch.no_grad():
        found = [
            model.config.id2label[
                int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax())
            ]
            for row in held
        ]
    accuracy = np.mean([f == row["label"] for f, row in zip(found, held, strict=True)])
    assert accuracy == pytest.approx(finished[-1].metadata["valid"]["valid_accuracy"])


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(
    finished: list[checkpoint.Committed], spec: Spec, tmp_path: Path
) -> None:
    changes = {"output_directory": tmp_path / "parts", "state_interval_seconds": 0}
    changed = spec.model_copy(update=changes)
    cancellation = Cancellation()
    with pytest.raises(JobError, match="stopped on request"):
        train(changed, _StopAtStep(3, cancellation), cancellation)
    assert [c.digest for c in train(changed)] == [c.digest for c in finished]


class _StopAtStep(Reporter):
    def __init__(self, step: int, cancellation: Cancellation) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._cancellation = cancellation

    def progress(self, phase: str, completed: int, total: int, *more: Any) -> None:
        if phase == "train" and completed == self._step:
            self._cancellation.requested = True


def test_all_weights_can_be_trained_on_conversations(spec: Spec, tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": row["text"]}], "label": row["label"]}
        for row in rows(24)
    ]
    sha256 = write_jsonl(tmp_path / "chats.jsonl", chats)
    changed = spec.model_copy(
        update={
            "training_file_path": tmp_path / "chats.jsonl",
            "training_file_sha256": sha256,
            "validation_file_path": None,
            "validation_file_sha256": None,
            "adapter": Adapter(kind="none"),
            "learning_rate": 1e-3,
            "hyperparameters": replace(spec.hyperparameters, epochs=1),
            "output_directory": tmp_path / "out",
        }
    )
    final = train(changed)[-1]
    assert final.metadata["heldout_source"] == "split"
    assert (final.path / "model/model.safetensors").exists()


def test_a_conversation_has_the_ids_that_serving_computes(spec: Spec) -> None:
    codec = load_codec(spec.base_checkpoint_path / "model")
    messages = ({"role": "user", "content": "Say mill."},)
    found = class_examples.encode(Classified(1, "", messages, "a"), 0, codec, 512)
    text = codec.tokenizer.apply_chat_template(list(messages), tokenize=False)
    assert found.token_ids.tolist() == codec.encode([text])[0]
    short = class_examples.encode(Classified(1, "", messages, "a"), 0, codec, 4)
    assert (len(short.token_ids), short.was_truncated) == (4, True)


def row(line: int, label: str | int) -> Classified:
    return Classified(line, f"text {line}", (), label)


def test_labels_are_in_order_and_numbers_are_numbers() -> None:
    assert class_examples.labelled([row(1, "b"), row(2, "a")], None).labels == ["a", "b"]
    assert class_examples.labelled([row(1, 10), row(2, 9)], None).labels == ["9", "10"]


@pytest.mark.parametrize(
    ("training", "validation", "reason", "words"),
    [
        ([row(1, "a"), row(2, "a")], None, "TOO_FEW_CLASSES", "'a'"),
        ([row(n, n) for n in range(1001)], None, "TOO_MANY_CLASSES", "1001"),
        ([row(1, "a"), row(2, "b")], [row(7, "c")], "INVALID_EXAMPLE", "line 7 .label.: 'c'"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(
    training: list[Classified], validation: list[Classified] | None, reason: str, words: str
) -> None:
    with pytest.raises(JobError, match=words) as caught:
        class_examples.labelled(training, validation)
    assert caught.value.reason == reason


def test_an_adapter_that_cannot_be_merged_is_refused(spec: Spec) -> None:
    with pytest.raises(JobError) as caught:
        classification.read(spec.model_copy(update={"adapter": Adapter(kind="prompt")}))
    assert caught.value.reason == "ADAPTER_UNSUITABLE"


def test_f1_is_of_the_classes_that_occur() -> None:
    from millrace_tuner.jobs.classification_objective import f1_macro

    found, wanted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert f1_macro(found, wanted) == pytest.approx((2 / 3 + 4 / 5) / 2)
