"""The job itself, on a tiny random model that the test makes."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino_genai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from millrace_compressor.jobs import compress, plain, quantize
from millrace_compressor.jobs.compress import Spec
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter

pytestmark = pytest.mark.filterwarnings("ignore")  # what tracing a model says is not ours
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
T = TypeVar("T")
TEXT = Path(json.__file__).read_text()


def in_own_thread(call: Callable[[], T]) -> T:
    """Keep OpenVINO's CPU plugin off the main thread, which handles the tests' signals.

    Each plugin gives the thread that loads it an alternate signal stack of its own (its
    SigAltStackSetup); freed in another order than made, they leave the thread with one that is
    freed already, and the next signal is a segmentation fault. A job ends with its process.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(call).result()


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
            "evaluation", lambda path: np.save(path / "heldout-00000.npy", ids[:600])
        )

    def _save_model(self, config: Qwen3Config, fast: Any) -> Callable[[Path], None]:
        def save(path: Path) -> None:
            Qwen3ForCausalLM(config).save_pretrained(path / "model")
            fast.save_pretrained(path / "model")

        return save

    def _commit(self, name: str, write: Callable[[Path], None]) -> str:
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
    manifest.verify(Path(result["artifact_path"]), result["artifact_digest"])
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
        quantize.inspect(artifact, "openvino-int8")
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
