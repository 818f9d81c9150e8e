"""The whole road of a pruned artifact, with real jobs: pruned, recovered by the tuner's own
distillation, measured and committed."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compressor_threads import in_own_thread
from test_pruning import VOCABULARY, one_thread, text, trained
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from millrace_compressor.jobs import compress, prune
from millrace_runtime import manifest
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner.jobs import checkpoint, distillation
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.specification import Spec as TuningSpec
from millrace_tuner.methods import Adapter, Distillation, Hyperparameters

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]

__all__ = ["one_thread"]  # for every test of this file too
TARGET = "safetensors-pruned"
RECIPE = {"pruning": {"depth": 0.25, "heads": 0.25, "width": 0.5, "recovery": True}}


def words() -> PreTrainedTokenizerFast:
    vocabulary = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"<end>": 63}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))  # a word
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="w0")


class Road:
    """A checkpoint with the data that it was trained on, and each job on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = self._commit("checkpoint", self._write_model)
        self.evaluation = self._commit("evaluation", self._write_data)

    def _write_model(self, path: Path) -> None:
        trained().save_pretrained(path / "model")
        words().save_pretrained(path / "model")

    def _write_data(self, path: Path) -> None:
        np.save(path / "train-00000.npy", text(300, 20_000).astype(np.uint16).flatten())
        np.save(path / "heldout-00000.npy", text(40, 30_000).astype(np.uint16).flatten())

    def _commit(self, name: str, write: Any) -> str:
        temporary = manifest.temporary_sibling(self.folder / name)
        write(temporary)
        return manifest.commit(temporary, self.folder / name, name, {})

    def given(self) -> dict[str, Any]:
        return {
            "compression_id": "compression-1",
            "checkpoint_path": self.folder / "checkpoint",
            "checkpoint_digest": self.checkpoint,
            "evaluation_path": self.folder / "evaluation",
            "evaluation_digest": self.evaluation,
            "recipe": RECIPE,
            "working_directory": self.folder / ".work-compression-1",
            "threads": 1,
            "window_tokens": 24,
        }

    def prune(self) -> dict[str, Any]:
        student = self.folder / ".work-compression-1" / "student"
        given = {**self.given(), "student_path": student, "recovery_tokens": 4800}
        return _result(prune.work, prune.Spec.model_validate(given))

    def recover(self, pruned: dict[str, Any]) -> checkpoint.Committed:
        """As the tuner's job does it."""
        student = Path(pruned["student_path"])
        spec = TuningSpec(
            job="ftjob-1",
            model="recovery:1",
            base_version="demo@0",
            base_checkpoint_path=student,
            base_checkpoint_digest=pruned["student_digest"],
            companion_path=self.folder / "checkpoint",
            companion_digest=self.checkpoint,
            training_file_path=student / prune.WINDOWS_FILE,
            training_file_sha256=manifest.sha256_file(student / prune.WINDOWS_FILE),
            output_directory=self.folder / "tuned",
            method=Distillation("tenants/acme/runs/r/checkpoints/c"),
            hyperparameters=Hyperparameters(4, 8, 1.0, precision="float32"),
            learning_rate=5e-3,
            adapter=Adapter(kind="none"),
            threads=1,
        )
        spec.output_directory.mkdir()
        distillation.learn(spec, Reporter(io.StringIO()), Cancellation())
        return checkpoint.checkpoints(spec.output_directory, spec.digest)[-1]

    def compress(self, name: str, **more: Any) -> tuple[Path, dict[str, Any]]:
        """The artifact and what was measured of it."""
        given = {**self.given(), **more, "target": TARGET, "artifact_path": self.folder / name}
        spec = compress.Spec.model_validate(given)
        result = in_own_thread(lambda: _result(compress.work, spec))
        return Path(result["artifact_path"]), result["measurements"]


def _result(work: Any, spec: Any) -> dict[str, Any]:
    stream = io.StringIO()
    work(spec, Reporter(stream))
    told: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    return Road(tmp_path_factory.mktemp("road"))


def test_a_pruned_artifact_learns_again_and_is_measured(road: Road) -> None:
    lossy, without = road.compress("lossy")
    pruned = road.prune()
    assert road.prune() == pruned  # started again, it says the same
    assert pruned["windows"] == 200
    learned = road.recover(pruned)
    artifact, measured = road.compress(
        "recovered",
        recovered_path=learned.path,
        recovered_digest=learned.digest,
        recovery_job="tenants/acme/jobs/ftjob-1",
    )
    assert measured["original_perplexity"] < measured["artifact_perplexity"]
    assert measured["artifact_perplexity"] < 0.9 * without["artifact_perplexity"]
    assert measured["artifact_size_bytes"] == without["artifact_size_bytes"]
    assert measured["artifact_size_bytes"] < 0.7 * measured["original_size_bytes"]
    report = json.loads((artifact / "pruning.json").read_text())
    assert report["recovery"]["checkpoint_digest"] == learned.digest
    assert len(report["rounds"]) == 1
    assert report["after"] == json.loads((lossy / "pruning.json").read_text())["after"]
    _require_own_files(road, artifact)
    assert not (road.folder / ".work-compression-1").exists()


def _require_own_files(road: Road, artifact: Path) -> None:
    """The tokenizer and its special tokens are the checkpoint's, the model is a plain one."""
    model = road.folder / "checkpoint" / "model"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (artifact / name).read_bytes() == (model / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(artifact)
    own = json.loads((model / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded.config, name) == own[name]
    assert loaded.config.num_hidden_layers == 3


def test_windows_that_judge_are_not_learned_from(road: Road) -> None:
    pruned = road.prune()
    windows = np.load(Path(pruned["student_path"]) / prune.WINDOWS_FILE)
    heldout = np.load(road.folder / "evaluation/heldout-00000.npy").reshape(-1, 24)
    assert not {row.tobytes() for row in heldout.astype(np.int32)} & {
        row.tobytes() for row in windows
    }


def test_a_damaged_checkpoint_is_not_pruned(road: Road) -> None:
    with pytest.raises(JobError) as caught:
        _result(
            prune.work,
            prune.Spec.model_validate(
                {
                    **road.given(),
                    "checkpoint_digest": "sha256:" + "0" * 64,
                    "student_path": road.folder / "other",
                }
            ),
        )
    assert caught.value.reason == "CHECKPOINT_INVALID"
