"""Learning targets from sources, with an encoder and a decoder."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tuner_builders import (
    pair_tokenizer,
    write_base,
    write_encoder_decoder,
    write_jsonl,
)

from millrace_examples.kinds import Pair
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, flow, pair_examples, reading, sequence
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import Adapter, Hyperparameters, SequenceToSequence, Supervised

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

NUMBERS = ("zero", "one", "two", "three", "four", "five")
FILLERS = ("", "null", "eins", "null null", "eins eins", "null eins")


def pairs() -> list[dict[str, str]]:
    """Every number, among words that mean nothing."""
    return [
        {"source": f"say {before} {number} {after}", "target": number}
        for number in NUMBERS
        for before in FILLERS[:3]
        for after in FILLERS
    ]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Spec:
    folder = tmp_path_factory.mktemp("sequence")
    heldout = pairs()[::7]
    training = [pair for pair in pairs() if pair not in heldout]
    return Spec(
        job="ftjob-1",
        model="ft:pairs:default::abc123",
        base_version="pairs@1",
        base_checkpoint_path=folder / "base",
        base_checkpoint_digest=write_encoder_decoder(folder / "base"),
        training_file_path=folder / "train.jsonl",
        training_file_sha256=write_jsonl(folder / "train.jsonl", training),
        validation_file_path=folder / "valid.jsonl",
        validation_file_sha256=write_jsonl(folder / "valid.jsonl", heldout),
        output_directory=folder / "out",
        method=SequenceToSequence(),
        hyperparameters=Hyperparameters(8, 8, 1.0, precision="float32"),
        learning_rate=5e-3,
        adapter=Adapter(kind="none"),
        threads=1,
    )


def train(
    spec: Spec, reporter: Reporter | None = None, cancellation: Cancellation | None = None
) -> list[checkpoint.Committed]:
    spec.output_directory.mkdir(exist_ok=True)
    sequence.learn(spec, reporter or Reporter(io.StringIO()), cancellation or Cancellation())
    return checkpoint.checkpoints(spec.output_directory, spec.digest)


def test_targets_are_learned_and_the_committed_model_writes_them(spec: Spec) -> None:
    from transformers import AutoModelForSeq2SeqLM

    final = train(spec)[-1]
    base, valid = final.metadata["base_valid"], final.metadata["valid"]
    assert base["valid_exact_match"] < 0.2
    assert valid["valid_exact_match"] > 0.7
    assert valid["valid_loss"] < base["valid_loss"] / 4
    model = AutoModelForSeq2SeqLM.from_pretrained(final.path / "model").eval()
    assert spec.validation_file_path is not None
    held = [json.loads(line) for line in spec.validation_file_path.read_text().splitlines()]
    matches = 0
    for pair in held:
        ids = pair_tokenizer()(pair["source"], return_tensors="pt")["input_ids"]
        written = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0]
        text = pair_tokenizer().decode(written, skip_special_tokens=True).strip()
        matches += text == pair["target"]
    assert matches / len(held) == pytest.approx(valid["valid_exact_match"])


def test_with_an_adapter_interrupted_it_ends_with_the_same_bytes(
    spec: Spec, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "adapter": Adapter(rank=4, alpha=8, dropout=0.1),
        "state_interval_seconds": 0,
        "hyperparameters": Hyperparameters(2, 8, 1.0, precision="float32"),
    }
    changed = spec.model_copy(update={**changes, "output_directory": tmp_path / "whole"})
    whole = train(changed)
    changed = changed.model_copy(update={"output_directory": tmp_path / "parts"})
    cancellation = Cancellation()
    with pytest.raises(JobError, match="stopped on request"):
        train(changed, _StopAtStep(5, cancellation), cancellation)
    assert [c.digest for c in train(changed)] == [c.digest for c in whole]
    final = whole[-1]
    assert final.metadata["valid"]["valid_loss"] < final.metadata["base_valid"]["valid_loss"] - 0.3
    assert _merged_is_base_and_adapter(spec, final.path)


class _StopAtStep(Reporter):
    def __init__(self, step: int, cancellation: Cancellation) -> None:
        super().__init__(io.StringIO())
        self._step = step
        self._cancellation = cancellation

    def progress(self, phase: str, completed: int, total: int, *more: Any) -> None:
        if phase == "train" and completed == self._step:
            self._cancellation.requested = True


def _merged_is_base_and_adapter(spec: Spec, committed: Path) -> bool:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    merged = AutoModelForSeq2SeqLM.from_pretrained(committed / "model").eval()
    base = AutoModelForSeq2SeqLM.from_pretrained(spec.base_checkpoint_path / "model")
    adapted = PeftModel.from_pretrained(base, committed / "adapter").eval()
    given = {"input_ids": torch.tensor([[9, 4, 5, 1]]), "decoder_input_ids": torch.tensor([[0, 4]])}
    with torch.no_grad():
        return torch.allclose(merged(**given).logits, adapted(**given).logits, atol=1e-4)


def test_both_sides_end_with_the_mark_and_are_cut_before_it() -> None:
    codec = pair_tokenizer()
    rows = [Pair(1, "say one two", "one"), Pair(2, "say two three four five", "two two two")]
    whole = pair_examples.encode(rows, codec, 16)
    assert [example.was_truncated for example in whole] == [False, False]
    assert whole[0].source.tolist() == codec.encode("say one two") == [9, 4, 5, 1]
    assert whole[0].target.tolist() == [4, 1]
    cut = pair_examples.encode(rows, codec, 4)
    assert cut[0].source.tolist() == whole[0].source.tolist()
    assert cut[1].source.tolist() == [9, 5, 6, 1]
    assert [example.was_truncated for example in cut] == [False, True]


def test_the_context_of_t5_is_what_it_tells(spec: Spec, tmp_path: Path) -> None:
    asked = reading.sequence_limit(spec)
    assert asked == 512
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"n_positions": 256}')
    assert reading.sequence_limit(spec.model_copy(update={"base_checkpoint_path": tmp_path})) == 256
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/tokenizer_config.json").write_text('{"model_max_length": 128}')
    assert reading.sequence_limit(spec.model_copy(update={"base_checkpoint_path": tmp_path})) == 128


def test_bases_that_a_method_cannot_tune_are_named(spec: Spec, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="only the method sequence") as caught:
        flow.verify_base(spec.model_copy(update={"method": Supervised()}))
    assert caught.value.reason == "BASE_MODEL_UNSUITABLE"
    changes = {
        "base_checkpoint_path": tmp_path / "causal",
        "base_checkpoint_digest": write_base(tmp_path / "causal"),
    }
    with pytest.raises(JobError, match="such as T5") as caught:
        flow.verify_base(spec.model_copy(update=changes))
    assert caught.value.reason == "BASE_MODEL_UNSUITABLE"
    flow.verify_base(spec)
