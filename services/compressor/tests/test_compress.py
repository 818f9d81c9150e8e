"""The job itself, on a tiny random model that the test makes."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import pytest
import torch
from compressor_threads import in_own_thread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from millrace_compressor import convert
from millrace_compressor.jobs import compress, plain
from millrace_compressor.jobs.compress import Spec
from millrace_compressor.jobs.openvino_ir import OpenvinoIr
from millrace_compressor.rows import measurements_of
from millrace_runtime import manifest, signing
from millrace_runtime.jobs import JobError, Reporter

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
# What was traced and timed of the one shape that all tests compress, as the service keeps it.
KEPT = tempfile.TemporaryDirectory(prefix="compressor-tests-")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = Path(json.__file__).read_text()


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


class Store:
    """A folder with a committed checkpoint and held-out tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reported: list[dict[str, Any]] = []
        torch.manual_seed(0)
        fast = tokenizer()
        config = Qwen3Config(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
        ids = np.array(fast(TEXT)["input_ids"], np.uint16)
        self.checkpoint_digest = self._commit("checkpoint", self._save_model(config, fast))
        self.evaluation_digest = self._commit(
            "evaluation",
            lambda path: (
                np.save(path / "heldout-00000.npy", ids[:600]),
                np.save(path / "train-00000.npy", ids[512:]),
            ),
        )

    def _save_model(self, config: Qwen3Config, fast: Any) -> Callable[[Path], None]:
        def save(path: Path) -> None:
            Qwen3ForCausalLM(config).save_pretrained(path / "model")
            fast.save_pretrained(path / "model")

        return save

    def _commit(self, name: str, write: Callable[[Path], object]) -> str:
        temporary = manifest.temporary_sibling(self.folder / name)
        write(temporary)
        return manifest.commit(temporary, self.folder / name, name, {})

    def spec(self, target: str = "openvino-int8", **changes: Any) -> Spec:
        return Spec.model_validate(
            {
                "compression_id": "compression-1",
                "checkpoint_path": self.folder / "checkpoint",
                "checkpoint_digest": self.checkpoint_digest,
                "evaluation_path": self.folder / "evaluation",
                "evaluation_digest": self.evaluation_digest,
                "target": target,
                "artifact_path": self.folder / f"artifact-{target}",
                "working_directory": self.folder / f"work-{target}",
                "originals_directory": Path(KEPT.name) / "originals",
                "graphs_directory": Path(KEPT.name) / "graphs",
                "threads": 1,
                "evaluation_tokens": 512,
                **changes,
            }
        )

    def run(self, spec: Spec) -> dict[str, Any]:
        """The job's result line."""
        path = self.folder / "report.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            in_own_thread(lambda: compress.work(spec, Reporter(stream)))
        self.reported = [json.loads(line) for line in path.read_text().splitlines()]
        return self.reported[-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def greedy(artifact: Path, prompt: str, tokens: int) -> list[int]:
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(artifact),
        openvino_genai.SchedulerConfig(),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    handle = pipeline.add_request(0, prompt, config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return list(handle.read_all()[0].generated_ids)


def test_int8_is_small_close_and_committed(store: Store) -> None:
    result = store.run(store.spec())
    measured = result["measurements"]
    assert measured["weight_shares"]["int8"] > 0.9
    assert measured["artifact_size_bytes"] < 0.5 * measured["original_size_bytes"]
    assert measured["artifact_perplexity"] == pytest.approx(
        measured["original_perplexity"], rel=0.02
    )
    assert measured["kl_divergence"] < 0.01
    assert measured["evaluated_tokens"] == 4 * 127
    assert measured["first_token_seconds"] > 0
    for which in ("original", "artifact"):
        assert [load["streams"] for load in measured[f"{which}_loads"]] == [1, 16]
        assert all(load["tokens_per_second"] > 0 for load in measured[f"{which}_loads"])
    assert "calibration" not in measured, "it is not calibrated"
    quality = json.loads((Path(result["artifact_path"]) / "quality.json").read_text())
    assert quality.items() >= measured.items()
    assert (quality["target"], quality["threads"]) == ("openvino-int8", 1)
    made = manifest.verify(Path(result["artifact_path"]), result["artifact_digest"])
    assert signing.parents_of(made.metadata) == (store.checkpoint_digest,)
    assert not (store.folder / "work-openvino-int8").exists()
    phases = [line["phase"] for line in store.reported if line["kind"] == "progress"]
    assert phases == ["convert", "inspect", "measure", "commit"]


def test_started_again_it_says_the_same_without_doing_it_again(store: Store) -> None:
    first = store.run(store.spec())
    assert store.run(store.spec()) == first
    assert len(store.reported) == 1


def test_the_reference_generates_what_transformers_does(store: Store) -> None:
    artifact = Path(store.run(store.spec("openvino-fp32"))["artifact_path"])
    model = store.folder / "checkpoint" / "model"
    reference = Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32)
    fast = PreTrainedTokenizerFast.from_pretrained(model)
    ids = fast("import os\n", return_tensors="pt").input_ids
    expected = reference.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    answered = in_own_thread(lambda: greedy(artifact, "import os\n", 12))
    assert answered == expected[0, ids.shape[1] :].tolist()


def test_tokenizer_files_are_the_checkpoints_own(store: Store) -> None:
    artifact = Path(store.run(store.spec())["artifact_path"])
    model = store.folder / "checkpoint" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (artifact / name).read_bytes() == (model / name).read_bytes()


def test_a_quantisation_that_did_not_happen_is_found(store: Store) -> None:
    artifact = Path(store.run(store.spec("openvino-fp32"))["artifact_path"])
    with pytest.raises(JobError) as caught:
        OpenvinoIr("openvino-int8").inspect(artifact)
    assert caught.value.reason == "QUANTIZATION_SKIPPED"


def test_a_damaged_checkpoint_is_refused(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(store.folder / "checkpoint", copy)
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(JobError) as caught:
        store.run(store.spec(checkpoint_path=copy, artifact_path=tmp_path / "artifact"))
    assert caught.value.reason == "CHECKPOINT_INVALID"


def test_without_held_out_tokens_nothing_passes(store: Store, tmp_path: Path) -> None:
    temporary = manifest.temporary_sibling(tmp_path / "empty")
    digest = manifest.commit(temporary, tmp_path / "empty", "evaluation", {})
    spec = store.spec(
        evaluation_path=tmp_path / "empty",
        evaluation_digest=digest,
        artifact_path=tmp_path / "artifact",
        working_directory=tmp_path / "work",
    )
    with pytest.raises(JobError) as caught:
        store.run(spec)
    assert caught.value.reason == "EVALUATION_DATA_MISSING"
    assert not (tmp_path / "artifact").exists()


def test_a_calibrated_one_says_on_what_and_how_other_text_does(store: Store) -> None:
    calibration = {"samples": 6, "seed": "7", "compare": True}
    spec = store.spec(
        "openvino-int8-activations",
        recipe={"calibration": calibration},
        originals_directory=store.folder / "originals",
    )
    result = store.run(spec)
    record = result["measurements"]["calibration"]
    assert (record["source"], record["seed"]) == ("CALIBRATION_SOURCE_OWN", 7)
    assert (record["windows"], record["window_tokens"], record["note"]) == (6, 128, "")
    other = record["other"]
    assert other["source"] == "CALIBRATION_SOURCE_GENERIC"
    assert other["digest"] != record["digest"]
    assert other["artifact_perplexity"] > 0
    kept = json.loads((Path(result["artifact_path"]) / "calibration.json").read_text())
    assert kept["digest"] == record["digest"]
    (original,) = (store.folder / "originals").glob("*.json")
    assert json.loads(original.read_text()).items() <= result["measurements"].items()
    message = convert._measurements_to_proto(measurements_of(result["measurements"]))
    assert message.calibration.other.digest == other["digest"]


def test_a_plain_one_is_the_checkpoints_own_weights(store: Store) -> None:
    model = store.folder / "checkpoint" / "model"
    result = store.run(store.spec("safetensors"))
    artifact, measured = Path(result["artifact_path"]), result["measurements"]
    manifest.verify(artifact, result["artifact_digest"])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (artifact / name).read_bytes() == (model / name).read_bytes()
    assert measured["artifact_perplexity"] == measured["original_perplexity"]
    assert (measured["kl_divergence"], measured["top1_agreement"]) == (0, 1)
    assert measured["artifact_size_bytes"] == measured["original_size_bytes"]
    assert measured["first_token_seconds"] > 0 and measured["token_seconds"] > 0


def test_neither_pickles_nor_code_go_along(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json", "pytorch_model.bin", "modeling.py"):
        (model / name).touch()
    plain.convert(model, tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "model.safetensors",
        "config.json",
    }
    with pytest.raises(JobError, match=r"model\.safetensors"):
        plain.inspect(tmp_path / "made")
    (model / "model.safetensors").unlink()
    with pytest.raises(JobError, match="no weights"):
        plain.convert(model, tmp_path / "again")
