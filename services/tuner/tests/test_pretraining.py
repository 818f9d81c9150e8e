"""Going on with pre-training, with and without the base's own data."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuner_builders import tokenizer, write_base, write_dataset, write_jsonl

from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, pretraining, text_windows
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, ContinuedPretraining, Hyperparameters

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

WINDOW = 64


def old_text(number: int) -> str:
    return f"the mill {number % 7} turns and the race runs to the mill {number % 5}.\n"


def new_text(number: int) -> str:
    return f"Zebras {number % 7} graze; quick foxes jump over fence {number % 5}!\n"


def write_texts(path: Path, texts: list[str]) -> str:
    return write_jsonl(path, [{"text": text} for text in texts])


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A base that has learned the old texts, with their data beside it, and new texts to learn."""
    folder = tmp_path_factory.mktemp("pretraining")
    old = [old_text(number) * 4 for number in range(60)]
    data = folder / "data"
    data_digest = write_dataset(data, old, [old_text(number + 3) * 4 for number in range(12)])
    spec = Spec(
        job="ftjob-1",
        model="ft:demo:default::abc123",
        base_version="demo@1",
        base_checkpoint_path=folder / "untaught",
        base_checkpoint_digest=write_base(folder / "untaught"),
        training_file_path=folder / "old.jsonl",
        training_file_sha256=write_texts(folder / "old.jsonl", old),
        output_directory=folder / "base",
        method=ContinuedPretraining(replay_fraction=0.0),
        hyperparameters=Hyperparameters(
            3, 8, 1.0, maximum_sequence_tokens=WINDOW, precision="float32"
        ),
        learning_rate=5e-3,
        adapter=Adapter(kind="none"),
        threads=1,
    )
    base = train(spec)[-1]
    new = [new_text(number) * 4 for number in range(40)]
    return spec.model_copy(
        update={
            "base_checkpoint_path": base.path,
            "base_checkpoint_digest": base.digest,
            "base_evaluation_path": data,
            "base_evaluation_digest": data_digest,
            "training_file_path": folder / "new.jsonl",
            "training_file_sha256": write_texts(folder / "new.jsonl", new),
            "learning_rate": 3e-3,
            "hyperparameters": replace(spec.hyperparameters, epochs=2),
        }
    )


def train(spec: Spec, cancellation: Cancellation | None = None) -> list[checkpoint.Committed]:
    spec.output_directory.mkdir(exist_ok=True)
    pretraining.learn(spec, Reporter(io.StringIO()), cancellation or Cancellation())
    return checkpoint.checkpoints(spec.output_directory, spec.digest)


def with_replay(spec: Spec, fraction: float, output: Path) -> Spec:
    method = ContinuedPretraining(replay_fraction=fraction)
    return spec.model_copy(update={"method": method, "output_directory": output})


def test_replay_keeps_what_the_base_knew_and_the_new_text_is_learned(
    known: Spec, tmp_path: Path
) -> None:
    plain = train(with_replay(known, 0.0, tmp_path / "plain"))[-1].metadata
    mixed = train(with_replay(known, 0.3, tmp_path / "mixed"))[-1].metadata
    before = plain["base_valid"]
    for metadata in (plain, mixed):
        assert metadata["valid"]["valid_loss"] < before["valid_loss"] - 1
        assert metadata["forgetting"] == {
            "base_loss_before": before["valid_base_loss"],
            "base_loss_after": metadata["valid"]["valid_base_loss"],
            "tokens": metadata["forgetting"]["tokens"],
        }
    assert plain["forgetting"]["tokens"] > 400
    forgotten = plain["valid"]["valid_base_loss"] - before["valid_base_loss"]
    kept = mixed["valid"]["valid_base_loss"] - before["valid_base_loss"]
    assert forgotten > 0.3
    assert kept < forgotten / 2


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(known: Spec, tmp_path: Path) -> None:
    changes = {"adapter": Adapter(rank=4, alpha=8, dropout=0.1), "state_interval_seconds": 0}
    spec = with_replay(known, 0.1, tmp_path / "whole").model_copy(update=changes)
    whole = train(spec)
    spec = spec.model_copy(update={"output_directory": tmp_path / "parts"})
    cancellation = Cancellation()
    stopping = _StopAtStep(3, cancellation)
    spec.output_directory.mkdir()
    with pytest.raises(JobError, match="stopped on request"):
        pretraining.learn(spec, stopping, cancellation)
    assert [c.digest for c in train(spec)] == [c.digest for c in whole]


class _StopAtStep(Reporter):
    def __init__(self, step: int, cancellation: Cancellation) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._cancellation = cancellation

    def progress(self, phase: str, completed: int, total: int, *more: Any) -> None:
        if phase == "train" and completed == self._step:
            self._cancellation.requested = True


def test_windows_are_full_and_every_document_ends(tmp_path: Path, known: Spec) -> None:
    codec = ChatCodec(tokenizer(), ())
    windows = text_windows.prepare(known, text_windows.read(known), codec, lambda *_: None)
    every = [*windows.training, *windows.heldout]
    lengths = sorted(len(window.token_ids) for window in every)
    assert lengths[1:] == [WINDOW] * (len(lengths) - 1)
    assert all(not window.is_learned[0] and window.is_learned[1:].all() for window in every)
    ends = sum(int((w.token_ids == codec.tokenizer.eos_token_id).sum()) for w in every)
    assert 35 <= ends <= 40  # 40 documents; windows that are alike are held out once


def test_a_text_file_is_one_document_whose_tokens_are_those_of_its_text(
    tmp_path: Path, known: Spec
) -> None:
    text = "\n\n".join(new_text(number) * 20 for number in range(150))
    path = tmp_path / "book.txt"
    path.write_text(text)
    spec = known.model_copy(
        update={"training_file_path": path, "training_file_sha256": manifest.sha256_file(path)}
    )
    texts = text_windows.read(spec)
    assert len(texts.training.texts) > 1
    codec = ChatCodec(tokenizer(), ())
    stream = text_windows.tokens(texts.training, codec, lambda *_: None)
    assert stream[-1] == codec.tokenizer.eos_token_id
    assert codec.tokenizer.eos_token_id not in stream[:-1]
    assert codec.tokenizer.decode(stream[:-1].tolist()) == text


def test_replayed_windows_are_of_the_training_shards_and_of_the_share_that_was_asked(
    known: Spec,
) -> None:
    spec = with_replay(known, 0.25, Path("unused"))
    codec = ChatCodec(tokenizer(), ())
    new = text_windows.prepare(spec, text_windows.read(spec), codec, lambda *_: None)
    replayed = text_windows.replayed(spec, new, len(codec.tokenizer))
    of_new = sum(len(window.token_ids) for window in new.training)
    of_old = sum(len(window.token_ids) for window in replayed)
    assert of_old / (of_old + of_new) == pytest.approx(0.25, abs=0.05)
    assert known.base_evaluation_path is not None
    shards = sorted(known.base_evaluation_path.glob("train-*.npy"))
    held = {
        np.load(shard)[start : start + WINDOW].astype(np.int32).tobytes()
        for shard in shards
        for start in range(0, len(np.load(shard)) - WINDOW + 1, WINDOW)
    }
    assert len(shards) > 1
    assert {window.token_ids.tobytes() for window in replayed} <= held


def test_a_tuned_base_has_nothing_to_replay_and_its_user_is_told(
    known: Spec, tmp_path: Path
) -> None:
    (tmp_path / "tuned/evaluation").mkdir(parents=True)
    spec = with_replay(known, 0.05, tmp_path / "out")
    for path in (None, tmp_path / "tuned"):
        with pytest.raises(JobError, match="Set replay_fraction to 0") as caught:
            text_windows.require_replay(spec.model_copy(update={"base_evaluation_path": path}))
        assert caught.value.reason == "REPLAY_UNAVAILABLE"
    text_windows.require_replay(with_replay(spec, 0.0, tmp_path))


def test_the_rate_is_warmed_up_anew_and_decays_to_a_tenth(known: Spec, tmp_path: Path) -> None:
    method = ContinuedPretraining(replay_fraction=0.0, warmup_fraction=0.5)
    spec = known.model_copy(update={"method": method, "output_directory": tmp_path / "out"})
    train(spec)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open()]
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    middle = len(rates) // 2
    assert rates[:middle] == sorted(rates[:middle])
    assert rates[middle:] == sorted(rates[middle:], reverse=True)
    assert max(rates) == pytest.approx(spec.learning_rate, rel=0.01)
    assert spec.learning_rate / 10 <= rates[-1] < spec.learning_rate / 3


def test_the_bases_data_must_be_what_it_was(known: Spec, tmp_path: Path) -> None:
    changed = {"base_evaluation_digest": "sha256:" + "0" * 64, "output_directory": tmp_path / "o"}
    with pytest.raises(JobError) as caught:
        train(known.model_copy(update=changed))
    assert caught.value.reason == "BASE_DATA_INVALID"


def test_one_window_cannot_be_learned_and_measured_by(known: Spec, tmp_path: Path) -> None:
    sha256 = write_texts(tmp_path / "short.jsonl", ["A few words."])
    changed = {"training_file_path": tmp_path / "short.jsonl", "training_file_sha256": sha256}
    spec = known.model_copy(update={**changed, "output_directory": tmp_path / "out"})
    with pytest.raises(JobError, match="lower maximum_sequence_tokens") as caught:
        train(spec)
    assert caught.value.reason == "TOO_FEW_EXAMPLES"
